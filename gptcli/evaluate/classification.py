"""Metrics of how well labels are told apart: accuracy, F1, confusion matrix, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gptcli.evaluate.bootstrap import Floats, Integers, Tally

CALIBRATION_BINS = 15  # of equal width over the probability of the label given, as Guo et al. 2017


@dataclass(frozen=True)
class Labelled:
    """The right labels and those that a model said, numbers (n,), with the probability of what it said (n,)."""

    labels: tuple[str, ...]
    wanted: Integers
    given: Integers
    confidence: Floats

    @property
    def correct(self) -> Floats:
        """Return 1 for each row that is right and 0 for each that is wrong, (n,)."""
        return (self.wanted == self.given).astype(np.float64)

    def confusion(self) -> Integers:
        """Return rows of each label (first index) that were given each label (second index), (L, L)."""
        size = len(self.labels)
        return np.bincount(self.wanted * size + self.given, minlength=size * size).reshape(size, size)

    def tally(self) -> Tally:
        """Count right, wanted and given rows of each label, and sum confidence less correctness in each calibration
        bin."""
        size, ones = len(self.labels), np.ones(len(self.wanted))
        bins = np.clip(np.ceil(self.confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
        groups = np.stack([self.wanted, size + self.wanted, 2 * size + self.given, 3 * size + bins], axis=1)
        values = np.stack([self.correct, ones, ones, self.confidence - self.correct], axis=1)
        return Tally(groups, values, 3 * size + CALIBRATION_BINS)

    def metrics(self, sums: Floats) -> dict[str, Floats]:
        """Compute metrics from sums (..., 3 L + bins): NaN where one has no value; a label's are named METRIC/LABEL.

        Macro-F1 is the mean over the labels that were wanted or given at all, as scikit-learn's.
        """
        size = len(self.labels)
        right, wanted, given, gaps = np.split(sums, [size, 2 * size, 3 * size], axis=-1)
        rows = wanted.sum(-1)
        by_label = {
            "precision": _ratio(right, given),
            "recall": _ratio(right, wanted),
            "f1": _ratio(2 * right, wanted + given),
        }
        occurs = wanted + given > 0
        found = {
            "accuracy": right.sum(-1) / rows,
            "macro_f1": np.where(occurs, by_label["f1"], 0).sum(-1) / occurs.sum(-1),
            "calibration_error": np.abs(gaps).sum(-1) / rows,
        }
        for name, values in by_label.items():
            found |= {f"{name}/{label}": values[..., index] for index, label in enumerate(self.labels)}
        return found

    def accuracy_and_macro_f1(self) -> tuple[float, float]:
        """Return the share of right labels, and the mean F1 of the labels that were wanted or given."""
        found = self.metrics(self.tally().sums())
        return float(found["accuracy"]), float(found["macro_f1"])

    def reasons(self) -> dict[str, str]:
        """Return why a metric of a label may have no value."""
        why = {"precision": "no row was given this label", "recall": "no row has this label"}
        why["f1"] = "no row has this label or was given it"
        return {f"{name}/{label}": text for name, text in why.items() for label in self.labels}


def label_numbers(names: Sequence[str], labels: Sequence[str]) -> Integers:
    """Return the place of each name among the labels."""
    places = {label: index for index, label in enumerate(labels)}
    return np.array([places[name] for name in names], dtype=np.int64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
