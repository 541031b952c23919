"""Steps of several processes that have a part of the model each: those of one process to rounding."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import in_processes
from test_step_replicated import CASES, STEPS, batches, double_nats, model_of, trained

from gptcli.data.batches import IGNORE, Batch, Step
from gptcli.device.processes import ALONE, Processes
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.initial import sharded_state
from gptcli.train.loop import train_step
from gptcli.train.loss import next_token_nats
from gptcli.train.sharded import Sharded
from gptcli.train.shards import rows_of

MICRO_BATCHES = 5  # of which the last round leaves processes idle
ROUNDING = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 1e-2}
MODELS = {"float64": [("gpt2", "classic")], "float32": CASES, "bfloat16": CASES[:2]}  # RMSNorm and Muon are float32


def sharded_trained(
    processes: Processes, preset: str, optim: str, dtype: str, exchange: str, *, recompute: bool = False
) -> Any:
    """Losses and norms, and the weights at the end, whole."""
    config, optim_config = model_of(preset, optim)
    runtime = Runtime(torch.device("cpu"), getattr(torch, dtype), 1)
    processes = dataclasses.replace(processes, config=dataclasses.replace(processes.config, exchange=exchange))
    with torch.device("meta"):
        model = GPT(config)
    model.to(torch.float64 if dtype == "float64" else torch.float32)
    model.activation_checkpointing = recompute
    sharded = Sharded(model, processes, runtime)
    sharded.draw(torch.Generator().manual_seed(1))
    state = sharded_state(sharded, optim_config, runtime, step_tokens=32 * MICRO_BATCHES)
    found = []
    for step in range(STEPS):
        objective = double_nats if dtype == "float64" else next_token_nats
        clip = optim_config.grad_clip_norm
        found.append(train_step(state, batches(step, MICRO_BATCHES), clip, runtime, seed=1, objective=objective))
        state.step += 1
    return found, {name: weight.full_tensor().tolist() for name, weight in sharded.weights.items()}


def every_case(processes: Processes) -> Any:
    """All kinds of models, optimizers and precisions; each twice, the second time with activation checkpointing."""
    found: dict[Any, Any] = {}
    for dtype, models in MODELS.items():
        for preset, optim in models:
            exchange = "step" if optim == "classic" else "micro_batch"
            found[preset, optim, dtype] = [
                sharded_trained(processes, preset, optim, dtype, exchange, recompute=recompute)
                for recompute in (False, True)
            ]
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_processes_with_parts_of_a_model_train_it_as_one_does(count: int) -> None:
    several = in_processes(count, every_case)
    assert all(each == several[0] for each in several), [each for each in several if isinstance(each, str)]
    for (preset, optim, dtype), (once, again) in several[0].items():
        assert again == once, "the bits depend on activation checkpointing, or differ from run to run"
        one, weights, _ = trained(ALONE, preset, optim, MICRO_BATCHES, dtype, "micro_batch")
        for (nats, norm), (other_nats, other_norm) in zip(once[0], one, strict=True):
            assert nats == pytest.approx(other_nats, rel=ROUNDING[dtype])
            assert norm == pytest.approx(other_norm, rel=max(1e-6, 10 * ROUNDING[dtype]))  # told as a float32
        if dtype == "float64":
            assert once[1].keys() <= weights.keys()
            for name, weight in once[1].items():
                wanted, have = (torch.tensor(each, dtype=torch.float64) for each in (weights[name], weight))
                torch.testing.assert_close(have, wanted, rtol=1e-9, atol=1e-11)


def nothing_learnt_by_one(processes: Processes) -> Any:
    """A step of rows of two micro-batches, of which the second has no target; its loss and norm."""
    config, optim = model_of("modern", "modern")
    runtime = Runtime(torch.device("cpu"), torch.float32, 1)
    with torch.device("meta"):
        model = GPT(dataclasses.replace(config, dropout=0.0))
    sharded = Sharded(model, processes, runtime)
    sharded.draw(torch.Generator().manual_seed(1))
    state = sharded_state(sharded, optim, runtime, step_tokens=32)
    row = torch.arange(16)[None]
    some, none = (Batch(row, targets, "made up", lengths=(16,)) for targets in (row + 1, row * 0 + IGNORE))
    return train_step(state, Step(16, [some, none]), optim.grad_clip_norm, runtime, seed=1, objective=next_token_nats)


def test_one_process_may_have_nothing_to_learn() -> None:
    (nats, norm), other = in_processes(2, nothing_learnt_by_one)
    assert other == (nats, norm), other
    assert nats == pytest.approx(16 * math.log(50), rel=0.01)
    assert 0 < norm < float("inf")


@given(st.integers(1, 200), st.integers(1, 16))
def test_rows_are_cut_as_torch_cuts_them(length: int, count: int) -> None:
    rows = torch.arange(length)
    wanted = [part.tolist() for part in torch.chunk(rows, count)]
    found = [rows[rows_of(length, rank, count)].tolist() for rank in range(count)]
    assert found == wanted + [[]] * (count - len(wanted))
