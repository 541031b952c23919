"""Steps of several processes: the bits of one, in float64 to 1e-10 where sums are made in another order."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import in_processes
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.data.batches import Batch, Step
from gptcli.data.packing import counted
from gptcli.device.processes import ALONE, Processes
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.loop import train_step
from gptcli.train.loss import next_token_nats
from gptcli.train.optimizers import make_optimizers
from gptcli.train.owners import ALIGNED, cut, divide, empty, fill
from gptcli.train.state import TrainState

STEPS = 3


def model_of(preset: str, optim: str) -> tuple[ModelConfig, OptimConfig]:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "context_length": 16, "vocab_size": 50}
    clipped = dataclasses.replace(OptimConfig.from_preset(optim), grad_clip_norm=0.5)
    return ModelConfig.from_preset(preset, **sizes, dropout=0.1), clipped


def batches(step: int, micro_batches: int) -> Step:
    draw = torch.Generator().manual_seed(step)
    ids = [torch.randint(50, (2, 16), generator=draw) for _ in range(micro_batches)]
    return counted([Batch(each, each.roll(-1, 1), "made up") for each in ids])


def trained(processes: Processes, preset: str, optim: str, micro_batches: int, dtype: str, exchange: str) -> Any:
    """Losses, norms, and the weights and states at the end, in the first process."""
    config, optim_config = model_of(preset, optim)
    runtime = Runtime(torch.device("cpu"), getattr(torch, dtype), 1)
    model = GPT(config)
    model.initialize(torch.Generator().manual_seed(1))
    model.to(torch.float64 if dtype == "float64" else torch.float32)
    optimizers = make_optimizers(model, optim_config, step_tokens=32 * micro_batches, dtype=runtime.dtype)
    processes = dataclasses.replace(processes, config=dataclasses.replace(processes.config, exchange=exchange))
    state, found = TrainState(model, optimizers, processes=processes), []
    for step in range(STEPS):
        objective = double_nats if dtype == "float64" else next_token_nats
        batch, clip = batches(step, micro_batches), optim_config.grad_clip_norm
        taken = train_step(state, batch, clip, runtime, seed=1, objective=objective)
        found.append(taken)
        state.step += 1
    state.gradient_step.collect_state()
    tensors = {name: weight.tolist() for name, weight in model.state_dict().items()}
    states = {name: tensor.tolist() for name, tensor in optimizers.tensors(create=True).items()}
    return (found, tensors, states) if processes.is_first else None


def double_nats(model: GPT, batch: Batch, runtime: Runtime) -> Tensor:  # noqa: ARG001
    """The objective of pretraining in float64, which the fused one does not compute."""
    return F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten(), reduction="sum")


CASES = [("modern", "modern"), ("gpt2", "classic"), ("llama", "modern")]


@pytest.mark.parametrize(("preset", "optim"), CASES)
@pytest.mark.parametrize(("count", "micro_batches"), [(2, 3), (3, 4)])
def test_every_number_of_processes_gives_the_bits_of_one(
    preset: str, optim: str, count: int, micro_batches: int
) -> None:
    one = in_processes(1, trained, preset, optim, micro_batches, "float32", "micro_batch")[0]
    several = in_processes(count, trained, preset, optim, micro_batches, "float32", "micro_batch")[0]
    assert several == one


def test_one_exchange_a_step_differs_by_rounding_alone() -> None:
    one, weights, _ = in_processes(1, trained, "gpt2", "classic", 4, "float64", "step")[0]
    several, others, _ = in_processes(2, trained, "gpt2", "classic", 4, "float64", "step")[0]
    for (nats, norm), (other_nats, other_norm) in zip(several, one, strict=True):
        assert nats == pytest.approx(other_nats, rel=1e-10)
        assert norm == pytest.approx(other_norm, rel=1e-6)  # one process tells it as a float32
    for name, weight in weights.items():
        assert torch.allclose(
            torch.tensor(others[name], dtype=torch.float64),
            torch.tensor(weight, dtype=torch.float64),
            rtol=1e-10,
            atol=1e-12,
        )


def poisoned(processes: Processes) -> bool:
    """A step in which one process alone meets what is not finite; whether the weights are as they were."""
    config, optim = model_of("modern", "modern")
    model = GPT(config)
    model.initialize(torch.Generator().manual_seed(1))
    optimizers = make_optimizers(model, optim, step_tokens=64, dtype=torch.float32)
    state = TrainState(model, optimizers, processes=processes)
    before = [weight.detach().clone() for weight in model.parameters()]

    def objective(model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
        return next_token_nats(model, batch, runtime) * (math.nan if processes.rank == 1 else 1)

    runtime = Runtime(torch.device("cpu"), torch.float32, 1)
    try:
        train_step(state, batches(0, 2), 1.0, runtime, seed=1, objective=objective)
    finally:
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    return True


def test_what_is_not_finite_in_one_process_stops_all_before_the_update() -> None:
    ended = sorted(in_processes(2, poisoned))
    assert ended[0] == "LostProcess: "
    assert ended[1].startswith("NumericalError: step 1: the loss is not finite")


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 64))
def test_every_element_travels_once(sizes: list[int], processes: int, chunk_bytes: int) -> None:
    owners = divide(sizes, [float(size) for size in sizes], processes)
    tensors = [torch.arange(size) + 1000 * number for number, size in enumerate(sizes)]
    found = [torch.zeros_like(tensor) for tensor in tensors]
    for chunk in cut(owners, sizes, chunk_bytes):
        for pieces in chunk.rows:
            row = torch.full((chunk.width,), -1)
            fill(row, pieces, tensors)
            empty(row, pieces, found)
    assert all(torch.equal(*pair) for pair in zip(tensors, found, strict=True))
    assert all(place % ALIGNED == 0 for place in owners.places)
    assert sorted(weight for rank in range(processes) for weight in owners.owned(rank)) == list(range(len(sizes)))


def test_one_process_alone_needs_no_others() -> None:
    assert ALONE.share({"a": 1}) == {"a": 1}
    assert ALONE.largest(3) == 3
