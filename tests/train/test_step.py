"""Training steps by two at a time, and as recorded work: the same as one operation after another. A recording is plain
Python here."""

import dataclasses
from typing import Any

import pytest
import torch

from gptcli.base.errors import NumericalError
from gptcli.base.signals import Stopped
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.data.batches import Batch, Step
from gptcli.device.cuda_graphs import Work
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.loop import train_step
from gptcli.train.optimizers import make_optimizers
from gptcli.train.state import TrainState
from gptcli.train.step import GradientStep
from gptcli.train.step_cuda_graph import CudaGraphStep
from gptcli.train.step_paired import PairedStep

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
TWO = dataclasses.replace(CPU, threads=2)
CONFIG = ModelConfig(num_layers=2, hidden_size=32, num_heads=2, context_length=16, vocab_size=50)
RECORDINGS: list[str] = []


def as_a_recording(work: Work) -> Work:
    RECORDINGS.append(work.__qualname__)
    return lambda: work()


class ByPyTorch(GradientStep):
    """Drops what a recording does."""

    numpy_dropout = CudaGraphStep.numpy_dropout


def make_state(*, graphs: bool, preset: str = "modern", dropout: float = 0.0) -> TrainState:
    model = GPT(CONFIG)
    model.initialize(torch.Generator().manual_seed(1))
    model.set_dropout(dropout)
    state = TrainState(
        model, make_optimizers(model, OptimConfig.from_preset(preset), step_tokens=64, dtype=torch.float32)
    )
    if graphs:
        state.gradient_step = CudaGraphStep(model, state.optimizers, record=as_a_recording)
    return state


def make_step(number: int, *, rows: int = 2, parts: int = 2, width: int = 16) -> Step:
    generator = torch.Generator().manual_seed(number)
    ids = [torch.randint(50, (rows, width), generator=generator) for _ in range(parts)]
    return Step(parts * rows * width, [Batch(each, each.roll(-1, 1), f"row {number}") for each in ids])


def take(state: TrainState, steps: range, *, runtime: Runtime = CPU, **options: Any) -> list[tuple[float, float]]:
    state.model.train()
    found = []
    for number in steps:
        state.optimizers.set_factor(1 / (1 + number))
        found.append(train_step(state, make_step(number, **options), 1.0, runtime, seed=1))
        state.step += 1
    return found


def assert_equal(one: TrainState, other: TrainState) -> None:
    for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    states, others = one.optimizers.tensors(), other.optimizers.tensors()
    assert states.keys() == others.keys()
    for name, tensor in states.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", ["modern", "classic"])
@pytest.mark.parametrize(("parts", "dropout"), [(1, 0.0), (3, 0.0), (2, 0.2)])
def test_recorded_steps_are_the_plain_ones(preset: str, parts: int, dropout: float) -> None:
    """Rates that change, accumulated micro-batches, clipping and dropout among them."""
    plain, recorded = (make_state(graphs=graphs, preset=preset, dropout=dropout) for graphs in (False, True))
    plain.gradient_step = ByPyTorch(plain.model, plain.optimizers)
    RECORDINGS.clear()
    wanted = take(plain, range(6), parts=parts)
    found = take(recorded, range(6), parts=parts)
    assert len(RECORDINGS) == 2  # the gradient and the update, once each
    assert found == [pytest.approx(pair, rel=1e-5) for pair in wanted]
    assert_equal(recorded, plain)


def test_a_batch_of_another_shape_is_computed_as_it_is() -> None:
    plain, recorded = make_state(graphs=False), make_state(graphs=True)
    for state in (plain, recorded):
        take(state, range(3))
        take(state, range(3, 5), rows=3, width=9)
        take(state, range(5, 7))
    assert_equal(recorded, plain)


def test_a_step_that_is_stopped_is_done_again() -> None:
    plain, recorded = make_state(graphs=False), make_state(graphs=True)
    take(recorded, range(2))
    with pytest.raises(Stopped):
        train_step(recorded, make_step(9), 1.0, CPU, seed=1, stop=lambda: True)
    take(recorded, range(2, 4))
    take(plain, range(4))
    assert_equal(recorded, plain)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    state = make_state(graphs=True)
    take(state, range(3))
    with torch.no_grad():
        state.model.head.weight[7] = float("nan")
    before = [weight.clone() for weight in state.model.parameters()]
    with pytest.raises(NumericalError, match="the loss is not finite"):
        take(state, range(3, 4))
    for weight, kept in zip(state.model.parameters(), before, strict=True):
        assert torch.equal(weight, kept) or weight is state.model.head.weight


def test_a_recording_that_does_something_else_is_not_used() -> None:
    plain, recorded = make_state(graphs=False), make_state(graphs=True)
    recorded.gradient_step = CudaGraphStep(recorded.model, recorded.optimizers, record=lambda _: lambda: None)
    wanted = take(plain, range(4))
    with pytest.warns(RuntimeWarning, match="no CUDA graphs: a replay changed other things"):
        found = take(recorded, range(4))
    assert found == [pytest.approx(pair, rel=1e-5) for pair in wanted]
    assert_equal(recorded, plain)


# --------------------------------------------------------------------------------------------------- two at a time


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_two_at_a_time_give_the_same_bits_as_one_after_another(parts: int, dropout: float) -> None:
    """Shapes so small that every operation has one thread in both. Dropout has a generator for each micro-batch."""
    plain, paired = make_state(graphs=False, dropout=dropout), make_state(graphs=False, dropout=dropout)
    plain.gradient_step = GradientStep(plain.model, plain.optimizers)
    assert isinstance(paired.gradient_step, PairedStep)
    threads = torch.get_num_threads()
    torch.set_num_threads(TWO.threads)
    try:
        assert take(paired, range(5), runtime=TWO, parts=parts) == take(plain, range(5), parts=parts)
        assert torch.get_num_threads() == TWO.threads
    finally:
        torch.set_num_threads(threads)
    for ours, theirs in zip(paired.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [0, 1])
def test_what_fails_beside_another_is_told(bad: int) -> None:
    state, step = make_state(graphs=False), make_step(0)
    batches = list(step.micro_batches)
    batches[bad].inputs[0, 3] = 5000  # outside of the vocabulary
    with pytest.raises(IndexError):
        train_step(state, Step(step.targets, batches), 1.0, TWO, seed=1)
    state.gradient_step.zero_grad()
    assert take(state, range(2), runtime=TWO)  # and nothing hangs
