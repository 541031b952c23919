"""The model against its definitions and against its own cache."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import SMALL, make_model, random_ids
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.data.batches import Batch
from gptcli.model import dropout
from gptcli.model.attention import QUERY_BLOCK, AttentionRule, PackedSequences, causal_attention
from gptcli.model.functional import normalize_and_rotate, relu_squared, rms_normalize, rotate
from gptcli.model.gpt import GPT
from gptcli.model.layers import Norm, softcap
from gptcli.model.rotary import rotary_tables
from gptcli.train.step_clock import batch_flops

torch.set_num_threads(1)  # shapes so small that threads only wait for each other
PRESETS = ["modern", "gpt2", "gpt3-125m", "llama"]
SHAPES = [*((preset, None) for preset in PRESETS), ("modern", 2), ("llama", 1)]  # preset, key/value heads


def written_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V under a causal mask, head by head."""
    T, D, group = q.shape[2], q.shape[3], q.shape[1] // k.shape[1]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    heads = []
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h // group].mT / math.sqrt(D)
        heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, h // group])
    return torch.stack(heads, 1)


# ------------------------------------------------------------------------------------------------- initial weights


@pytest.mark.parametrize(
    ("preset", "tolerance"), [("modern", 1e-4), ("gpt2", 0.02), ("gpt3-125m", 0.02), ("llama", 0.02)]
)
def test_loss_at_the_start_is_ln_of_the_vocabulary(preset: str, tolerance: float) -> None:
    model = make_model(preset, scramble=False)
    ids, targets = random_ids(16, 32), random_ids(16, 32, seed=3)
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(512), rel=tolerance)


def test_initial_weights_depend_on_the_generator_alone() -> None:
    torch.manual_seed(5)
    first = make_model("llama", scramble=False)
    torch.manual_seed(6)
    second = make_model("llama", scramble=False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_is_initialised(preset: str) -> None:
    model = GPT(ModelConfig.from_preset(preset, **SMALL))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(math.nan)
    model.initialize(torch.Generator().manual_seed(1))
    assert all(weight.isfinite().all() for weight in model.parameters())


# ------------------------------------------------------------------------------------------------ causality, cache


@pytest.mark.parametrize(("preset", "kv_heads"), SHAPES)
def test_a_later_token_never_changes_an_earlier_logit(preset: str, kv_heads: int | None) -> None:
    model = make_model(preset, num_kv_heads=kv_heads)
    ids = random_ids(1, 32)
    before = model(ids)
    for place in (1, 7, 31):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 512
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


def test_the_model_refuses_more_tokens_than_its_context() -> None:
    with pytest.raises(ValueError, match="33 tokens do not fit a context of 32"):
        make_model("gpt2")(random_ids(1, 33))


# -------------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize(("preset", "kv_heads"), SHAPES)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=8))
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_sequences_have_the_states_and_gradients_of_each_alone(
    preset: str, kv_heads: int | None, lengths: list[int]
) -> None:
    model = make_model(preset, num_kv_heads=kv_heads)
    alone = [random_ids(1, length, seed=number) for number, length in enumerate(lengths)]
    packed = PackedSequences(lengths)
    hidden = model.hidden(torch.cat(alone, 1), layout=packed)
    apart = torch.cat([model.hidden(ids) for ids in alone], 1)
    torch.testing.assert_close(hidden, apart, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden[0, packed.last[-1]], hidden[0, -1])
    towards = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    weights = [weight for name, weight in model.named_parameters() if name != "head.weight"]
    for gradient, wanted in zip(
        torch.autograd.grad((hidden * towards).sum(), weights),
        torch.autograd.grad((apart * towards).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("T", [1, 5, QUERY_BLOCK, QUERY_BLOCK + 1, 2 * QUERY_BLOCK + 44])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (3, 1)])
def test_attention_and_its_gradients_equal_the_written_formula(T: int, H: int, K: int) -> None:
    generator = torch.Generator().manual_seed(T)
    q, k, v, dy = (
        torch.randn(2, heads, T, 8, dtype=torch.float64, generator=generator).requires_grad_() for heads in (H, K, K, H)
    )
    ours, theirs = causal_attention(q, k, v), written_attention(q, k, v)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, reference in zip(*(torch.autograd.grad(y, (q, k, v), dy) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=50)
@given(m=st.integers(0, 31), n=st.integers(0, 31), shift=st.integers(0, 31))
def test_the_product_of_rotated_vectors_depends_on_their_distance_alone(m: int, n: int, shift: int) -> None:
    shift = min(shift, 31 - max(m, n))
    cos, sin = (table.double() for table in rotary_tables(ModelConfig(**SMALL)))
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def product(at_q: int, at_k: int) -> float:
        return float(rotate(q, cos[at_q], sin[at_q]) @ rotate(k, cos[at_k], sin[at_k]))

    assert product(m + shift, n + shift) == pytest.approx(product(m, n), abs=1e-5)


def test_rotation_keeps_lengths_and_leaves_position_zero_alone() -> None:
    cos, sin = rotary_tables(ModelConfig(**SMALL))
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(4))
    y = rotate(x, cos, sin)
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1))


@pytest.mark.parametrize("function", ["rotate", "relu_squared", "causal_attention"])
def test_written_gradients_equal_finite_differences(function: str) -> None:
    x = torch.randn(2, 1, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    cos, sin = (t[:3].double() for t in rotary_tables(ModelConfig(**SMALL, head_dim=8)))
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "rotate": lambda x: rotate(x, cos, sin),
        "relu_squared": relu_squared,
        "causal_attention": lambda x: causal_attention(x, x.sin(), x.cos()),
    }
    assert torch.autograd.gradcheck(calls[function], (x,))


def test_normalising_and_rotating_at_once_equals_one_after_the_other() -> None:
    x = torch.randn(4, 32, 16, generator=torch.Generator().manual_seed(4)).requires_grad_()
    cos, sin = rotary_tables(ModelConfig(**SMALL))
    both, apart = normalize_and_rotate(x, 1e-6, cos, sin), rotate(rms_normalize(x, 1e-6), cos, sin)
    torch.testing.assert_close(both, apart)
    found = []
    for y in (both, apart):
        y.backward(torch.linspace(-1, 1, 4 * 32 * 16).view(4, 32, 16))
        found.append(x.grad)
        x.grad = None
    torch.testing.assert_close(*found)


def test_rmsnorm_equals_the_written_formula() -> None:
    norm = Norm(ModelConfig(**SMALL, norm_weight=True, norm_eps=0.01))
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 64))
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 0.01).sqrt() * norm.weight)


@given(st.floats(-1e6, 1e6))
@settings(deadline=None)
def test_the_soft_cap_bounds_logits_and_keeps_small_ones(logit: float) -> None:
    capped = float(softcap(torch.tensor(logit, dtype=torch.float64), 15.0))
    assert abs(capped) <= 15.0
    if abs(logit) < 0.1:
        assert capped == pytest.approx(logit, rel=1e-4)


def test_dropout_acts_in_training_only() -> None:
    model = make_model("modern", dropout=0.5)
    ids = random_ids(2, 8)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


# ----------------------------------------------------------------------------------------------------------- sizes


def parameters_of(preset: str) -> int:
    with torch.device("meta"):
        return GPT(ModelConfig.from_preset(preset, vocab_size=50257)).num_parameters()


def test_the_gpt2_preset_has_the_parameters_of_gpt2() -> None:
    assert parameters_of("gpt2") == 124_439_808


# The table of the GPT-3 paper contradicts itself in two rows, which GPT3_SIZES corrects: XL (1.3b) prints 24 heads of
# 128 for a width of 2048, and 13b a width of 5140 for 40 heads of 128. The sizes it states fit 16 heads and 5120.
@pytest.mark.parametrize(
    ("name", "nominal"),
    [
        ("125m", 125e6),
        ("350m", 350e6),
        ("760m", 760e6),
        ("1.3b", 1.3e9),
        ("2.7b", 2.7e9),
        ("6.7b", 6.7e9),
        ("13b", 13e9),
        ("175b", 175e9),
    ],
)
def test_the_gpt3_presets_have_the_sizes_of_the_paper(name: str, nominal: float) -> None:
    assert parameters_of(f"gpt3-{name}") == pytest.approx(nominal, rel=0.025)


def test_flops_of_a_token_are_six_a_weight_and_twelve_a_score() -> None:
    model = make_model("gpt2")
    block = 64 * 3 * 64 + 64 * 64 + 2 * 64 * 256
    assert model.train_flops_per_token(32) == 6 * (2 * block + 512 * 64) + 12 * 2 * 64 * 32


def test_flops_of_a_batch_are_those_of_its_sequences() -> None:
    model = make_model("gpt2")
    flops, per_token = batch_flops(model), model.train_flops_per_token
    ids = torch.zeros(2, 8, dtype=torch.long)
    assert flops(Batch(ids, ids, "windows")) == pytest.approx(16 * per_token(8))
    row = torch.zeros(1, 9, dtype=torch.long)
    assert flops(Batch(row, row, "packed", (2, 3, 4))) == pytest.approx(
        2 * per_token(2) + 3 * per_token(3) + 4 * per_token(4)
    )


def test_the_matrix_of_a_head_is_one_of_those_stacked_in_qkv() -> None:
    model = make_model("llama", num_kv_heads=2)
    shapes = model.matrix_shapes()
    assert len(shapes) == 2 * 4
    for name, shape in shapes.items():
        weight = model.get_parameter(name)
        assert shape == ((16, 64) if "qkv" in name else tuple(weight.shape))
    assert model.blocks[0].attention.qkv.weight.shape == (16 * 8, 64)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.97, 0.99999999])
@pytest.mark.parametrize("numpy", [True, False])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float, numpy: bool) -> None:
    x = torch.ones(333, 1001).requires_grad_()
    dropout.seed(5, numpy=numpy)
    y = dropout.dropout(x, rate)
    dropout.seed(5, numpy=numpy)
    again = dropout.mask(x, rate)
    assert torch.equal(y, again)
    assert (y == 0).float().mean() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / y.numel()) ** 0.5)
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - rate)), rtol=1e-3, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad, y)  # type: ignore[arg-type]


RULES = [
    AttentionRule(window=5),
    AttentionRule(window=QUERY_BLOCK + 7),
    AttentionRule(softcap=2.0),
    AttentionRule(alibi=True),
    AttentionRule(window=9, softcap=1.5, alibi=True),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_ruled_attention_is_the_formula_forward_and_backward(rule: AttentionRule) -> None:
    """Against autograd in float64 of the whole matrix, windows of sequences and packed ones alike."""
    torch.manual_seed(3)
    T = QUERY_BLOCK + 30
    q, k, v, dy = (torch.randn(1, heads, T, 8, dtype=torch.float64) for heads in (4, 2, 2, 4))

    def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (heads.repeat_interleave(2, 1) for heads in (k, v))
        scores = q @ k.mT / 8**0.5
        if rule.softcap:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        distance = torch.arange(T)[:, None] - torch.arange(T)
        if rule.alibi:
            slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8], dtype=torch.float64)
            scores = scores - slopes[:, None, None] * distance
        seen = (distance >= 0) & (distance < (rule.window or T))
        return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v

    found = []
    for attend in (formula, functools.partial(causal_attention, rule=rule)):
        inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        y = attend(*inputs)
        y.backward(dy)
        found.append([y.detach(), *(tensor.grad for tensor in inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # ALiBi's biases are float32
