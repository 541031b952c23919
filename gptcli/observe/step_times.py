"""The time of a run's optimizer steps on this machine, measured on made-up tokens."""

from __future__ import annotations

import time

import torch

from gptcli.config.model import ModelConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.batches import Batch, counted
from gptcli.device.machine import synchronize
from gptcli.device.processes import ALONE, Processes
from gptcli.device.runtime import Runtime, keep_freed_memory
from gptcli.train.initial import new_state
from gptcli.train.loop import train_step
from gptcli.train.micro_batches import micro_batch_rows
from gptcli.train.shard_choice import is_sharded
from gptcli.train.state import TrainState

STEPS, STEP_SECONDS = 5, 5.0  # at least so many measured steps, and more while time is left


def step_times(
    config: PretrainConfig, model_config: ModelConfig, runtime: Runtime, processes: Processes = ALONE
) -> tuple[TrainState, list[float]]:
    """Measure the seconds of optimizer steps of the run on made-up tokens, after two that warm up; all `processes` that
    share the steps call this.

    Returns the state that they left, too.
    """
    assert model_config.vocab_size is not None
    if runtime.on_cpu:
        keep_freed_memory()
    sharded = is_sharded(model_config, config.optim, runtime.device, processes)
    state = new_state(model_config, config, runtime, processes, sharded=sharded)
    rows = micro_batch_rows(config.train, model_config.context_length, on_cpu=runtime.on_cpu, processes=processes.count)
    shape = (rows, model_config.context_length)
    ids = torch.randint(model_config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    step = counted([Batch(ids, ids, "made up")] * (config.train.batch_size // rows))
    times: list[float] = []
    end = time.perf_counter() + STEP_SECONDS
    while processes.largest(len(times) < STEPS + 2 or time.perf_counter() < end):
        start = time.perf_counter()
        train_step(state, step, config.optim.grad_clip_norm, runtime, seed=1)
        synchronize(runtime.device)
        times.append(time.perf_counter() - start)
    return state, times[2:]
