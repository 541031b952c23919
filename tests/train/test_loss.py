"""The chunked loss against the formula in float64, and accumulation over micro-batches."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptcli.base.errors import NumericalError
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.data.batches import IGNORE, Batch, counted
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.model.layers import softcap
from gptcli.train import loss as loss_module
from gptcli.train.loop import train_step
from gptcli.train.loss import cross_entropy, head_cross_entropy, target_nats
from gptcli.train.optimizers import make_optimizers
from gptcli.train.state import TrainState

torch.set_num_threads(1)  # shapes so small that threads only wait for each other

CAPS = [0.0, 2.0, 15.0]
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)


def make_case(rows: tuple[int, ...] = (3, 7), C: int = 16, V: int = 50, ignored: float = 0.3) -> tuple[Tensor, ...]:
    """hidden (..., C), head weight (V, C), targets (...), in float64 with logits up to about 10."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(*rows, C, dtype=torch.float64, generator=generator)
    weight = torch.randn(V, C, dtype=torch.float64, generator=generator)
    targets = torch.randint(V, rows, generator=generator)
    return hidden, weight, targets.masked_fill(torch.rand(rows, generator=generator) < ignored, IGNORE)


def written_nats(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """-log softmax(cap tanh(hidden W^T / cap)) of each target that is not ignored, summed."""
    logits = hidden @ weight.t()
    logits = cap * torch.tanh(logits / cap) if cap else logits
    kept = targets != IGNORE
    chosen = logits[kept].gather(-1, targets[kept].unsqueeze(-1)).squeeze(-1)
    return (logits[kept].logsumexp(-1) - chosen).sum()


def value_and_gradients(function: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> list[Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = function(hidden, weight, targets, cap=cap)
    return [value.detach(), *torch.autograd.grad(value * 0.25, (hidden, weight))]


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("chunk_rows", [1, 4, 1000])
def test_value_and_gradients_equal_the_formula(cap: float, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = make_case()
    wanted = value_and_gradients(written_nats, hidden, weight, targets, cap)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", chunk_rows * len(weight))
    have = value_and_gradients(head_cross_entropy, hidden.float(), weight.float(), targets, cap)
    for ours, theirs in zip(have, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", CAPS)
def test_bfloat16_follows_the_formula_loosely(cap: float) -> None:
    hidden, weight, targets = make_case((8, 64), C=64, V=200)
    weight = weight / 8
    wanted = value_and_gradients(written_nats, hidden, weight, targets, cap)
    have = value_and_gradients(head_cross_entropy, hidden.bfloat16(), weight.float(), targets, cap)
    assert [t.dtype for t in have] == [torch.float32, torch.bfloat16, torch.float32]
    for ours, theirs in zip(have, wanted, strict=True):
        assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()


def test_ignored_targets_have_no_gradient() -> None:
    hidden, weight, targets = make_case()
    _, d_hidden, _ = value_and_gradients(head_cross_entropy, hidden.float(), weight.float(), targets, 15.0)
    assert (d_hidden[targets == IGNORE] == 0).all()
    assert (d_hidden[targets != IGNORE].abs().sum(-1) > 0).all()


def test_a_batch_of_ignored_targets_costs_nothing() -> None:
    hidden, weight, _ = make_case()
    targets = torch.full((3, 7), IGNORE)
    for tensor in value_and_gradients(head_cross_entropy, hidden.float(), weight.float(), targets, 0.0):
        assert (tensor == 0).all()


def test_a_frozen_head_gets_no_gradient_and_the_hidden_state_the_same_one() -> None:
    hidden, weight, targets = make_case()
    wanted = value_and_gradients(head_cross_entropy, hidden.float(), weight.float(), targets, 15.0)[1]
    x = hidden.float().requires_grad_()
    (head_cross_entropy(x, weight.float(), targets, cap=15.0) * 0.25).backward()
    assert torch.equal(x.grad, wanted)


def test_inputs_are_left_as_they_were() -> None:
    hidden, weight, targets = make_case()
    hidden, weight = hidden.float(), weight.float()
    copies = [t.clone() for t in (hidden, weight, targets)]
    value_and_gradients(head_cross_entropy, hidden, weight, targets, 15.0)
    target_nats(hidden, weight, targets, cap=15.0)
    assert all(torch.equal(t, copy) for t, copy in zip((hidden, weight, targets), copies, strict=True))


@settings(deadline=None, max_examples=30)
@given(cap=st.sampled_from(CAPS), ignored=st.floats(0, 1), chunk=st.integers(1, 2000))
def test_the_three_losses_agree(cap: float, ignored: float, chunk: int) -> None:
    hidden, weight, targets = make_case(ignored=ignored)
    hidden, weight = hidden.float(), weight.float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_LOGITS", chunk)
        summed = head_cross_entropy(hidden, weight, targets, cap=cap)
        each = target_nats(hidden, weight, targets, cap=cap)
    nats, count = cross_entropy(softcap(hidden @ weight.t(), cap), targets)
    assert int(count) == int((targets != IGNORE).sum())
    torch.testing.assert_close(summed, nats, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(each.sum(), nats, rtol=1e-5, atol=1e-5)
    assert each.shape == targets.shape
    assert (each[targets == IGNORE] == 0).all()


@pytest.mark.parametrize("cap", CAPS)
def test_a_bias_of_the_head_has_the_gradient_of_autograd(cap: float) -> None:
    hidden, weight, targets = make_case(ignored=0.3)
    hidden, weight = hidden.float(), weight.float()
    bias = torch.linspace(-1, 1, len(weight), dtype=hidden.dtype)
    found = []
    for ours in (True, False):
        h, w, b = (tensor.clone().requires_grad_() for tensor in (hidden, weight, bias))
        if ours:
            nats = head_cross_entropy(h, w, targets, cap=cap, bias=b)
        else:
            nats, _ = cross_entropy(softcap(h @ w.t() + b, cap), targets)
        nats.backward()
        found.append([tensor.grad for tensor in (h, w, b)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ through a step


def make_state() -> TrainState:
    model = GPT(
        ModelConfig(num_layers=2, num_heads=2, hidden_size=32, context_length=16, vocab_size=40, logit_softcap=15.0)
    )
    model.initialize(torch.Generator().manual_seed(1))
    # eps so large that the update is smooth in the gradient: near zero, Adam follows the sign of rounding errors.
    optim = OptimConfig.from_preset("classic", learning_rate=0.01, eps=0.01)
    return TrainState(model, make_optimizers(model, optim, step_tokens=32, dtype=torch.float32))


def make_batch(rows: int) -> Batch:
    """Rows with very different numbers of targets, so that a mean of micro-batches' means would differ."""
    generator = torch.Generator().manual_seed(2)
    inputs, targets = torch.randint(40, (2, rows, 16), generator=generator)
    for row in range(rows):
        targets[row, : row * 16 // rows] = IGNORE
    return Batch(inputs, targets, "test:0")


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_masked_micro_batches_make_the_step_of_one_batch(micro_batch: int, clip: float) -> None:
    whole, parts, batch = make_state(), make_state(), make_batch(8)
    micro_batches = [Batch(*(t.split(micro_batch)[i] for t in batch[:2]), "") for i in range(8 // micro_batch)]
    for _ in range(2):  # from the second step on, the projections that start at zero pass gradients
        nats, norm = train_step(whole, counted([batch]), clip, CPU, seed=1)
        nats_of_parts, norm_of_parts = train_step(parts, counted(micro_batches), clip, CPU, seed=1)
        assert nats_of_parts == pytest.approx(nats, rel=1e-5)
        assert norm_of_parts == pytest.approx(norm, rel=1e-4)
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_step_learns_the_loss_of_the_models_logits() -> None:
    state, batch = make_state(), make_batch(8)
    with torch.no_grad():
        state.model.head.weight.mul_(5000)  # logits far above the cap
    nats, count = cross_entropy(state.model(batch.inputs), batch.targets)
    gradients = torch.autograd.grad(nats / count, list(state.model.parameters()))
    found = train_step(state, counted([batch]), 0.0, CPU, seed=1)
    assert found == pytest.approx((nats.item(), torch.nn.utils.get_total_norm(gradients).item()), rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    state = make_state()
    with torch.no_grad():
        state.model.embedding.weight[0] = float("nan")
    before = [weight.clone() for weight in state.model.parameters()]
    with pytest.raises(NumericalError, match=r"step 1: the loss is not finite.*begins at test:0"):
        train_step(state, counted([make_batch(8)]), 0.0, CPU, seed=1)
    for ours, theirs in zip(state.model.parameters(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
