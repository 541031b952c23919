"""Drawing a token, against the definitions written out in plain Python."""

import math
import random
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptcli.config.generate import GenerateOptions
from gptcli.generate.sampling import candidates, draw, draw_on_device, penalize

MANY = settings(deadline=None, max_examples=200)
LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40)
FEW_VALUES = st.lists(st.sampled_from([-3.0, 0.0, 1.0, 1.5]), min_size=1, max_size=40)  # ties are the rule


def assume_clear(clear: bool) -> None:
    """Pass over a case in which rounding decides, where either answer is right."""
    if not clear:
        assume(False)


def written_distribution(
    logits: list[float], temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, min_p: float = 0.0
) -> dict[int, float]:
    """Temperature, then top-k, then top-p, then min-p, each on what the one before left, renormalised."""
    ranked = sorted(range(len(logits)), key=lambda index: (-logits[index], index))[:top_k]
    weights = {index: math.exp((logits[index] - max(logits)) / temperature) for index in ranked}
    total = math.fsum(weights.values())
    chances = {index: weight / total for index, weight in weights.items()}
    if top_p < 1:
        kept: dict[int, float] = {}
        for index, chance in chances.items():
            reached = math.fsum(kept.values())
            assume_clear(abs(reached - top_p) > 1e-9)
            if reached >= top_p:
                break
            kept[index] = chance
        chances = kept
    least = min_p * max(chances.values())
    assume_clear(all(abs(chance - least) > 1e-12 for chance in chances.values()))
    chances = {index: chance for index, chance in chances.items() if chance >= least}
    return {index: chance / math.fsum(chances.values()) for index, chance in chances.items()}


def distribution(logits: Tensor, options: GenerateOptions) -> dict[int, float]:
    """The ids that may be drawn and their probabilities."""
    ids, weights = candidates(logits.numpy(), options)
    chances = (weights / weights.sum()).tolist()
    return {i: p for i, p in zip(range(len(chances)) if ids is None else ids.tolist(), chances, strict=True) if p}


def assert_follows_the_definition(logits: list[float], **options: Any) -> None:
    wanted = written_distribution(logits, **options)
    found = distribution(torch.tensor(logits), GenerateOptions(**{"temperature": 1.0, **options}))
    assert found == pytest.approx({index: chance for index, chance in wanted.items() if chance > 0}, rel=1e-9)


@MANY
@given(LOGITS, st.floats(0.05, 100))
def test_temperature_divides_the_logits(logits: list[float], temperature: float) -> None:
    assert_follows_the_definition(logits, temperature=temperature)


@MANY
@given(LOGITS | FEW_VALUES, st.integers(1, 50))
def test_top_k_keeps_the_k_likeliest_and_of_ties_the_lower_ids(logits: list[float], top_k: int) -> None:
    assert_follows_the_definition(logits, top_k=top_k)


@MANY
@given(LOGITS | FEW_VALUES, st.floats(0, 1, exclude_min=True))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(logits: list[float], top_p: float) -> None:
    assert_follows_the_definition(logits, top_p=top_p)


@MANY
@given(LOGITS | FEW_VALUES, st.floats(0, 0.999))
def test_min_p_keeps_tokens_so_many_times_as_likely_as_the_likeliest(logits: list[float], min_p: float) -> None:
    assert_follows_the_definition(logits, min_p=min_p)


@MANY
@given(
    LOGITS | FEW_VALUES,
    st.floats(0.1, 5),
    st.none() | st.integers(1, 50),
    st.floats(0.01, 1),
    st.floats(0, 0.5),
)
def test_options_apply_one_after_another(
    logits: list[float], temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    assert_follows_the_definition(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


@pytest.mark.parametrize("min_p", [1.0, 0.5])
def test_all_of_the_likeliest_pass_min_p(min_p: float) -> None:
    options = GenerateOptions(min_p=min_p, temperature=1.0)
    assert distribution(torch.tensor([1.0, 5.0, 5.0, -1.0]), options) == {1: 0.5, 2: 0.5}


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-6, 100.0])
def test_no_temperature_overflows(temperature: float) -> None:
    found = distribution(torch.tensor([-30.0, 30.0, 29.0]), GenerateOptions(temperature=temperature))
    assert max(found, key=found.__getitem__) == 1
    assert sum(found.values()) == pytest.approx(1)


@MANY
@given(
    LOGITS.filter(lambda logits: len(logits) > 1),
    st.lists(st.integers(0, 39), max_size=10, unique=True),
    st.floats(0.25, 4),
)
def test_the_penalty_divides_positive_and_multiplies_negative_logits_seen(
    logits: list[float], seen: list[int], penalty: float
) -> None:
    seen = [index for index in seen if index < len(logits)]
    given_logits, penalized = torch.tensor(logits), torch.tensor(logits)
    penalize(penalized, torch.tensor(seen * 2, dtype=torch.long), penalty)  # once, however often it was seen
    for index, (before, after) in enumerate(zip(given_logits.tolist(), penalized.tolist(), strict=True)):
        if index in seen:
            assert after == pytest.approx(before / penalty if before > 0 else before * penalty, rel=1e-6, abs=1e-37)
        else:
            assert after == before


# ------------------------------------------------------------------------------------------------------- drawing


def draws(logits: Tensor, options: GenerateOptions, count: int, seed: int = 1) -> list[int]:
    uniform = random.Random(seed).random
    return [draw(logits.numpy(), options, uniform()) for _ in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 2.5, "top_k": 5},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.5, "min_p": 0.1, "top_k": 8},
    ],
)
def test_draws_follow_the_distribution_by_a_chi_square_test(options: dict[str, Any]) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3))
    count = 4000
    wanted = written_distribution(logits.tolist(), **options)
    drawn = draws(logits, GenerateOptions(**options), count)
    assert set(drawn) <= set(wanted)
    expected = {index: chance * count for index, chance in wanted.items()}
    assert min(expected.values()) > 5
    statistic = sum((drawn.count(index) - e) ** 2 / e for index, e in expected.items())
    freedom = len(wanted) - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3  # 99.9 % point


def test_the_same_numbers_draw_the_same_tokens() -> None:
    logits, options = torch.randn(50, generator=torch.Generator().manual_seed(3)), GenerateOptions()
    assert draws(logits, options, 50, seed=1) == draws(logits, options, 50, seed=1)
    assert draws(logits, options, 50, seed=1) != draws(logits, options, 50, seed=2)


@MANY
@given(LOGITS | FEW_VALUES)
def test_greedy_takes_the_likeliest_and_of_ties_the_lowest_id(logits: list[float]) -> None:
    wanted = max(range(len(logits)), key=lambda index: (logits[index], -index))
    assert draws(torch.tensor(logits), GenerateOptions(temperature=0.0), 1) == [wanted]
    assert draws(torch.tensor(logits), GenerateOptions(top_k=1), 1) == [wanted]


@MANY
@given(LOGITS, st.integers(0, 100), st.floats(0.01, 1), st.none() | st.integers(1, 5))
def test_only_candidates_are_drawn(logits: list[float], seed: int, top_p: float, top_k: int | None) -> None:
    options = GenerateOptions(top_p=top_p, top_k=top_k)
    allowed = set(distribution(torch.tensor(logits), options))
    assert set(draws(torch.tensor(logits), options, 5, seed)) <= allowed


def test_what_is_ruled_out_is_never_drawn() -> None:
    logits = torch.full((300,), -math.inf)
    logits[[7, 200]] = torch.tensor([1.0, 0.0])
    for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9, "min_p": 0.01}):
        assert set(draws(logits, GenerateOptions(**options), 100)) == {7, 200}


@pytest.mark.parametrize("top_p", [0.5, 0.999999])
def test_top_p_is_exact_in_a_large_vocabulary(top_p: float) -> None:
    """Flat, so that the likeliest few hundred do not reach p, and peaked, so that they do."""
    generator = torch.Generator().manual_seed(1)
    for scale in (0.01, 5.0):
        logits = torch.randn(3000, generator=generator) * scale
        wanted = written_distribution(logits.tolist(), top_p=top_p)
        assert distribution(logits, GenerateOptions(temperature=1.0, top_p=top_p)) == pytest.approx(wanted, rel=1e-9)


# Options, and the token from each share of the mass on, worked out by hand.
# At temperature 1 the probabilities of the ids 0 to 3 are 1/4, 1/8, 1/2 and 1/8.
TABLE: list[tuple[dict[str, Any], list[tuple[float, int]]]] = [
    ({"temperature": 0.0}, [(0.0, 2)]),
    ({"temperature": 1.0}, [(0.0, 0), (0.25, 1), (0.375, 2), (0.875, 3)]),
    ({"temperature": 0.5}, [(0.0, 0), (4 / 22, 1), (5 / 22, 2), (21 / 22, 3)]),  # weights 4, 1, 16, 1
    ({"temperature": 1.0, "top_k": 1}, [(0.0, 2)]),
    ({"temperature": 1.0, "top_k": 2}, [(0.0, 2), (2 / 3, 0)]),  # likeliest first
    ({"temperature": 1.0, "top_p": 0.5}, [(0.0, 2)]),
    ({"temperature": 1.0, "top_p": 0.6}, [(0.0, 2), (2 / 3, 0)]),
    ({"temperature": 1.0, "top_k": 2, "top_p": 0.66}, [(0.0, 2)]),  # of what top-k left, 2/3 and 1/3
    ({"temperature": 1.0, "min_p": 0.3}, [(0.0, 0), (1 / 3, 2)]),
    ({"temperature": 0.5, "min_p": 0.3}, [(0.0, 2)]),
    ({"temperature": 1.0, "top_k": 2, "min_p": 0.6}, [(0.0, 2)]),
]


@pytest.mark.parametrize(("options", "shares"), TABLE)
@pytest.mark.parametrize("sampler", ["draw, the norm", "draw_on_device"])
def test_samplers_follow_the_table(sampler: str, options: dict[str, Any], shares: list[tuple[float, int]]) -> None:
    logits, given = torch.tensor([1 / 4, 1 / 8, 1 / 2, 1 / 8]).log(), GenerateOptions(**options)
    for place in range(1000):
        uniform = (place + 0.5) / 1000
        wanted = next(token for share, token in reversed(shares) if uniform >= share)
        if sampler == "draw_on_device":
            found = int(draw_on_device(logits[None], given, torch.tensor([uniform], dtype=torch.float64))[0])
        else:
            found = draw(logits.numpy(), given, uniform)
        assert found == wanted, uniform
