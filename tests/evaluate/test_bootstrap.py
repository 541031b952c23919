"""Intervals and paired tests against scipy, and what must hold of them."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.evaluate.bootstrap import Floats, Resampling, Tally, differences, estimates, mcnemar

RESAMPLING = Resampling(resamples=400, seed=3)


def mean(sums: Floats) -> dict[str, Floats]:
    return {"mean": sums[..., 0] / sums[..., 1]}


def tally(values: Floats) -> Tally:
    return Tally.of_columns(value=values, one=np.ones(len(values)))


def test_the_interval_of_a_mean_is_that_of_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(size=60)
    found = estimates(tally(values), mean, Resampling(4000, 1))["mean"]
    reference = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2)
    assert found.value == pytest.approx(values.mean())
    assert found.interval == pytest.approx(tuple(reference.confidence_interval), rel=0.03)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=80))
def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=float).T
    better, differ = int((first > second).sum()), int((first != second).sum())
    expected = scipy.stats.binomtest(better, differ).pvalue if differ else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-9)


def test_the_randomisation_test_agrees_with_scipys_permutation_test() -> None:
    generator = np.random.default_rng(5)
    first = generator.normal(size=30)
    second = first + generator.normal(0.25, 0.6, size=30)
    found = differences(tally(first), tally(second), mean, Resampling(4000, 1), {})["mean"]
    reference = scipy.stats.permutation_test(
        (first, second), lambda a, b: (a - b).mean(), permutation_type="samples", n_resamples=4000, rng=1
    )
    assert found.p_value == pytest.approx(reference.pvalue, abs=0.02)
    assert found.test == "paired randomisation"
    assert found.estimate.value == pytest.approx((first - second).mean())


def test_a_model_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    for scores in ({}, {"mean": (values, values)}):
        found = differences(tally(values), tally(values), mean, RESAMPLING, scores)["mean"]
        assert (found.estimate.value, found.estimate.interval, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_the_interval_of_a_difference_draws_rows_in_pairs() -> None:
    values = np.random.default_rng(0).normal(size=50)
    found = differences(tally(values + 0.5), tally(values), mean, RESAMPLING, {})["mean"]
    assert found.estimate.interval == pytest.approx((0.5, 0.5))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    rows = tally(np.random.default_rng(0).normal(size=50))
    first, again, other = (estimates(rows, mean, Resampling(100, seed))["mean"].interval for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_metric_without_a_value_is_null_with_its_reason() -> None:
    rows = Tally.of_columns(value=np.zeros(3), one=np.zeros(3))
    with np.errstate(invalid="ignore"):
        found = estimates(rows, mean, RESAMPLING, {"mean": "nothing was counted"})["mean"]
    assert found.as_dict() == {"value": None, "interval": None, "reason": "nothing was counted"}


def test_one_row_has_no_interval() -> None:
    found = estimates(tally(np.ones(1)), mean, RESAMPLING)["mean"]
    assert (found.value, found.interval) == (1.0, None)
