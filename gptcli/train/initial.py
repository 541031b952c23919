"""A run file -> the state of its training at step 0."""

from __future__ import annotations

import torch

from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig, PretrainConfig
from gptcli.data.batches import derived_seed
from gptcli.device.attention_kernels import use_fastest
from gptcli.device.process import is_own_process
from gptcli.device.processes import ALONE, Processes
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.compile import compile_blocks
from gptcli.train.micro_batches import micro_batch_rows
from gptcli.train.optimizers import make_optimizers
from gptcli.train.sharded import Sharded, make_sharded_optimizers
from gptcli.train.state import TrainState
from gptcli.train.weights import Weights, WholeWeights


def new_state(
    model_config: ModelConfig,
    config: PretrainConfig,
    runtime: Runtime,
    processes: Processes = ALONE,
    *,
    sharded: bool = False,
) -> TrainState:
    """Make the model and its optimizers at step 0. Weights are drawn on the CPU, so that every device begins alike;
    `sharded`: each process keeps a part of them, and none ever has them all."""
    generator = torch.Generator().manual_seed(derived_seed(config.runtime.seed, "weights"))
    step_tokens = config.train.batch_size * model_config.context_length
    if runtime.device.type == "cuda" and is_own_process():
        rows = micro_batch_rows(config.train, model_config.context_length, on_cpu=False)
        shape = (rows, model_config.num_heads, model_config.context_length, model_config.head_size)
        use_fastest(shape, model_config.kv_heads, runtime.dtype, runtime.device)
    if sharded:
        with torch.device("meta"):
            model = GPT(model_config)
        model.activation_checkpointing = config.runtime.activation_checkpointing
        shards = Sharded(model, processes, runtime)
        shards.draw(generator)
        return sharded_state(shards, config.optim, runtime, step_tokens=step_tokens)
    model = GPT(model_config)
    model.initialize(generator)
    model.to(runtime.device)
    model.activation_checkpointing = config.runtime.activation_checkpointing
    if config.runtime.compile:
        compile_blocks(model)
    optimizers = make_optimizers(model, config.optim, step_tokens=step_tokens, dtype=runtime.dtype)
    if processes.alone:  # else each makes the state of what it owns
        optimizers.tensors(create=True)  # now: made in the first step it would lie between what that step frees
    return TrainState(model, optimizers, processes=processes)


def sharded_state(
    sharded: Sharded, optim: OptimConfig, runtime: Runtime, *, step_tokens: int, weights: Weights | None = None
) -> TrainState:
    """Return the state at step 0 of a model of which each process has a part; `weights`: how they are stored."""
    optimizers = make_sharded_optimizers(sharded, optim, step_tokens=step_tokens, dtype=runtime.dtype)
    weights = weights or WholeWeights()
    return TrainState(sharded.model, optimizers, weights=weights, processes=sharded.processes, sharded=sharded)
