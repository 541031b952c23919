"""Intervals by bootstrap and paired tests, for any metric that is a function of sums over rows.

A Tally says what every row adds to some sums; a metric is a function of the sums. Accuracy, F1 of a label and
calibration error are all of that form, so one way of drawing rows serves them all.

Intervals are percentile intervals of the bootstrap (Efron and Tibshirani 1993, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 0.95

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Metrics = Callable[[Floats], dict[str, Floats]]  # sums (..., sums) -> {name: (...)}, NaN where it has no value


@dataclass(frozen=True)
class Tally:
    """The addends of n rows: values[i, k] to the sum numbered groups[i, k]."""

    groups: Integers  # (n, K)
    values: Floats  # (n, K)
    size: int  # number of sums

    def __len__(self) -> int:
        return len(self.values)

    def sums(self, rows: Integers | None = None) -> Floats:
        """Return every sum, over all rows or those given (a row given twice counts twice)."""
        groups, values = (self.groups, self.values) if rows is None else (self.groups[rows], self.values[rows])
        sums: Floats = np.bincount(groups.ravel(), weights=values.ravel(), minlength=self.size).astype(np.float64)
        return sums

    @staticmethod
    def of_columns(**columns: Floats) -> Tally:
        """Return one sum for each column."""
        values = np.stack(list(columns.values()), axis=1).astype(np.float64)
        return Tally(np.broadcast_to(np.arange(values.shape[1]), values.shape), values, values.shape[1])


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval; without a value, the reason why there is none."""

    value: float | None
    interval: tuple[float, float] | None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        document = {"value": self.value, "interval": None if self.interval is None else list(self.interval)}
        return document if self.reason is None else {**document, "reason": self.reason}

    def __str__(self) -> str:
        if self.value is None:
            return f"-  ({self.reason})"
        return f"{self.value:.4f}" + ("" if self.interval is None else "  [{:.4f}, {:.4f}]".format(*self.interval))


@dataclass(frozen=True)
class Difference:
    """A metric of this model less that of the other, with an interval and a two-sided p-value."""

    estimate: Estimate
    p_value: float | None
    test: str

    def as_dict(self) -> dict[str, Any]:
        return {**self.estimate.as_dict(), "p_value": self.p_value, "test": self.test}

    def __str__(self) -> str:
        return (
            f"{self.estimate}  p {self.p_value:.4g} ({self.test})" if self.p_value is not None else f"{self.estimate}"
        )


@dataclass(frozen=True)
class Resampling:
    """The draws of rows: so many, from this seed."""

    resamples: int
    seed: int

    def as_dict(self) -> dict[str, Any]:
        return {"method": "percentile bootstrap over rows", "level": LEVEL, "resamples": self.resamples,
                "seed": self.seed}  # fmt: skip


def estimates(
    tally: Tally, metrics: Metrics, resampling: Resampling, reasons: Mapping[str, str] | None = None
) -> dict[str, Estimate]:
    """Return every metric with its interval over the resamples in which it has a value.

    `reasons`: why a metric may have no value, said where it has none.
    """
    values, drawn = metrics(tally.sums()), metrics(_resampled(tally, resampling))
    reasons = reasons or {}
    return {name: _estimate(value, drawn[name], len(tally), reasons.get(name)) for name, value in values.items()}


def differences(
    tally: Tally, other: Tally, metrics: Metrics, resampling: Resampling, scores: Mapping[str, tuple[Floats, Floats]]
) -> dict[str, Difference]:
    """Return every metric of `tally` less that of `other`, which are of the same rows in the same order.

    Intervals draw rows in pairs. p-values are McNemar's exact test for the metrics of which `scores` gives each row's
    score, 0 or 1, under both models; else those of a paired randomisation test, in which the two results of a row
    change sides at random (Noreen 1989), as often as there are resamples.
    """
    here, there = metrics(tally.sums()), metrics(other.sums())
    here_drawn, there_drawn = (metrics(_resampled(t, resampling)) for t in (tally, other))  # one seed: the same rows
    swapped = _swapped_differences(tally, other, metrics, resampling)
    found = {}
    for name, value in here.items():
        difference = value - there[name]
        estimate = _estimate(difference, here_drawn[name] - there_drawn[name], len(tally), None)
        if name in scores:
            found[name] = Difference(estimate, mcnemar(*scores[name]), "exact McNemar")
            continue
        beyond = np.abs(swapped[name]) >= abs(difference) - 1e-12
        p_value = float((beyond.sum() + 1) / (resampling.resamples + 1))
        found[name] = Difference(estimate, None if np.isnan(difference) else p_value, "paired randomisation")
    return found


def mcnemar(scores: Floats, others: Floats) -> float:
    """Return the two-sided p of McNemar's exact test (McNemar 1947; Dietterich 1998).

    The null hypothesis: of the rows that one model has right and the other wrong, either is as likely.
    """
    better, worse = int(((scores == 1) & (others == 0)).sum()), int(((scores == 0) & (others == 1)).sum())
    n, fewer = better + worse, min(better, worse)
    log_choose = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
    tail = math.fsum(math.exp(value - n * math.log(2)) for value in log_choose)
    return min(1.0, 2 * tail)


def _resampled(tally: Tally, resampling: Resampling) -> Floats:
    """Compute sums (resamples, sums) over as many rows as there are, drawn with replacement."""
    generator, n = np.random.default_rng(resampling.seed), len(tally)
    drawn = (generator.integers(n, size=n) for _ in range(resampling.resamples))
    return np.stack([tally.sums(rows) for rows in drawn])


def _swapped_differences(tally: Tally, other: Tally, metrics: Metrics, resampling: Resampling) -> dict[str, Floats]:
    generator = np.random.default_rng(resampling.seed)
    total = tally.sums() + other.sums()
    here = []
    for _ in range(resampling.resamples):
        swap = generator.random(len(tally)) < 0.5
        here.append(tally.sums(np.flatnonzero(~swap)) + other.sums(np.flatnonzero(swap)))
    first, second = metrics(np.stack(here)), metrics(total - np.stack(here))
    return {name: first[name] - second[name] for name in first}


def _estimate(value: Floats, drawn: Floats, rows: int, reason: str | None) -> Estimate:
    if np.isnan(value):
        return Estimate(None, None, reason or "it has no value in these rows")
    known = drawn[~np.isnan(drawn)]
    if rows < 2 or not len(known):
        return Estimate(float(value), None, "one row has no interval" if rows < 2 else "no resample has a value")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), (float(low), float(high)))
