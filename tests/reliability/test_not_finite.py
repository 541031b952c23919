"""NaN and infinity in a loss, a gradient, a weight or a logit end the work before they get into anything that lasts.

At every one of 20 steps:  pytest -m slow tests/test_not_finite.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptcli.base.errors import NumericalError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig, TrainConfig
from gptcli.data.batches import IGNORE, Batch, Step, counted
from gptcli.data.tokenizer import learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.loop import Hooks, train, train_step
from gptcli.train.loss import next_token_nats
from gptcli.train.optimizers import Optimizers, make_optimizers
from gptcli.train.run import less_memory
from gptcli.train.state import TrainState

STEPS = 20
RUNTIME = Runtime(torch.device("cpu"), torch.float32, 1)
MODEL = ModelConfig(num_layers=1, hidden_size=16, num_heads=2, context_length=8, vocab_size=30)
BAD = [math.nan, math.inf, -math.inf]


def new_model() -> tuple[GPT, Optimizers]:
    model = GPT(MODEL)
    model.initialize(torch.Generator().manual_seed(1))
    optimizers = make_optimizers(model, OptimConfig(), step_tokens=1024, dtype=torch.float32)
    return model, optimizers


def batches(step: int) -> Step:
    draw = torch.Generator().manual_seed(step)
    return counted(
        [
            Batch(ids, ids, f"train-00000.bin:{step * 100 + number}")
            for number in range(2)
            for ids in [torch.randint(30, (2, 8), generator=draw)]
        ]
    )


def at_step(bad_step: int, value: float, where: str) -> Callable[..., Tensor]:
    """An objective that goes wrong at one step: in the loss itself, or in one number of the gradient only."""
    calls = 0

    def objective(model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
        nonlocal calls
        calls += 1
        nats = next_token_nats(model, batch, runtime)
        if (calls + 1) // 2 != bad_step:
            return nats
        if where == "loss":
            return nats * value
        one = model.embedding.weight[3, 5]
        return nats + Poison.apply(one, value)  # type: ignore[no-untyped-call]

    return objective


class Poison(torch.autograd.Function):
    """Zero, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, number, value):  # type: ignore[no-untyped-def]
        ctx.value = value
        return number * 0

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        return gradients[0] * ctx.value, None


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_at_some_steps_training_stops_before_the_update_and_says_where(where: str) -> None:
    stops_before_the_update(where, [1, 2, 13])


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_at_every_step_training_stops_before_the_update_and_says_where(where: str) -> None:
    stops_before_the_update(where, range(1, STEPS + 1))


def stops_before_the_update(where: str, bad_steps: Iterable[int]) -> None:
    for bad_step in bad_steps:
        value = BAD[bad_step % 3]
        state = TrainState(*new_model())
        seen: list[dict[str, Tensor]] = []

        def save(_: object) -> None:
            pass

        hooks = Hooks(
            evaluate=save,
            save=save,
            sample=save,
            report=lambda _, state=state, seen=seen: seen.append(
                {name: weight.detach().clone() for name, weight in state.model.named_parameters()}
            ),
            stop=lambda: False,
            keep_time=lambda _state, _seconds: None,
        )
        config = TrainConfig(steps=STEPS, batch_size=4, log_every_steps=1, eval_every_steps=99, save_every_steps=99)
        with pytest.raises(NumericalError) as caught:
            train(
                state, batches, config, OptimConfig(), RUNTIME, hooks,
                seed=1, peak_flops=None, objective=at_step(bad_step, value, where),
            )  # fmt: skip
        said = str(caught.value)
        assert said.startswith(f"step {bad_step}: the {where} is not finite"), said
        assert f"the batch begins at train-00000.bin:{(bad_step - 1) * 100};" in said
        assert "at learning rate 0.00" in said
        assert state.step == bad_step - 1
        if seen:
            for name, weight in state.model.named_parameters():
                assert torch.equal(weight, seen[-1][name]), name


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    state = TrainState(*new_model(), step=7)
    with torch.no_grad():
        state.model.embedding.weight[2, 2] = math.inf
    with pytest.raises(NumericalError, match=r"step 7: embedding.weight holds values that are not finite"):
        checkpoint.save(state, tmp_path, learn_merges(["some text " * 20], vocab_size=260), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", BAD)
def test_a_logit_that_is_not_finite_ends_a_text_with_its_position(value: float) -> None:
    tokenizer = learn_merges(["some text " * 20], vocab_size=260)
    model = GPT(ModelConfig(num_layers=1, hidden_size=16, num_heads=2, context_length=8, vocab_size=260)).eval()
    model.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.head.weight[11] = value
        model.head.weight[12] = -value
    engine = Engine(model, tokenizer, RUNTIME, slots=1)
    with pytest.raises(NumericalError, match="non-finite logits at position 3"):
        list(engine.run([Request(tokenizer.encode("abc"), GenerateOptions(max_tokens=3))]))


def test_a_step_without_targets_changes_nothing_and_divides_by_nothing() -> None:
    state = TrainState(*new_model())
    before = {name: weight.detach().clone() for name, weight in state.model.named_parameters()}
    masked = [batch._replace(targets=torch.full_like(batch.targets, IGNORE)) for batch in batches(0).micro_batches]
    assert train_step(state, counted(masked), 1.0, RUNTIME, seed=1) == (0.0, 0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in state.model.named_parameters())


@pytest.mark.parametrize(
    ("batch", "micro", "words"),
    [(16, None, "train.micro_batch_size=1 (it is 4)"), (6, 6, "train.micro_batch_size=1 (it is 6)"),
     (64, 8, "train.micro_batch_size=2 (it is 8)"), (8, 1, "model.context_length=128 (it is 256)")],
)  # fmt: skip
def test_out_of_memory_names_the_knob_with_a_value_for_this_run(batch: int, micro: int | None, words: str) -> None:
    assert f"set {words}" in less_memory(TrainConfig(batch_size=batch, micro_batch_size=micro), 256, on_cpu=True)
