"""Metrics of labels equal scikit-learn's, on any labels."""

import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.evaluate.bootstrap import Resampling, estimates
from gptcli.evaluate.classification import CALIBRATION_BINS, Labelled, label_numbers

LABELS = ("a", "b", "c", "d")
CONFIDENCE = st.integers(0, 999).map(lambda number: (number + 0.5) / 1000)  # never on the border of two bins
ROW = st.tuples(st.integers(0, 3), st.integers(0, 3), CONFIDENCE)


def labelled(rows: list[tuple[int, int, float]]) -> Labelled:
    wanted, given_, confidence = zip(*rows, strict=True)
    return Labelled(LABELS, np.array(wanted), np.array(given_), np.array(confidence))


@settings(deadline=None, max_examples=150)
@given(st.lists(ROW, min_size=1, max_size=60))
def test_metrics_equal_those_of_scikit_learn(rows: list[tuple[int, int, float]]) -> None:
    found = labelled(rows)
    metrics = found.metrics(found.tally().sums())
    wanted, guessed = found.wanted, found.given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that occur on one side only
        precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
            wanted, guessed, labels=range(4), zero_division=np.nan
        )
        macro = sklearn.metrics.f1_score(wanted, guessed, average="macro", zero_division=0)
    assert metrics["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(wanted, guessed))
    assert metrics["macro_f1"] == pytest.approx(macro)
    for index, label in enumerate(LABELS):
        assert metrics[f"precision/{label}"] == pytest.approx(precision[index], nan_ok=True)
        assert metrics[f"recall/{label}"] == pytest.approx(recall[index], nan_ok=True)
        assert metrics[f"f1/{label}"] == pytest.approx(f1[index], nan_ok=True)
    matrix = sklearn.metrics.confusion_matrix(wanted, guessed, labels=range(4))
    assert (found.confusion() == matrix).all()
    assert (matrix.sum(1) == support).all()


@settings(deadline=None, max_examples=100)
@given(st.lists(ROW, min_size=1, max_size=60))
def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy(rows: list[tuple[int, int, float]]) -> None:
    found = labelled(rows)
    bins = np.digitize(found.confidence, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], right=True)
    expected = 0.0
    for index in set(bins.tolist()):
        inside = bins == index
        expected += abs(found.confidence[inside].mean() - found.correct[inside].mean()) * inside.sum() / len(rows)
    assert found.metrics(found.tally().sums())["calibration_error"] == pytest.approx(expected, abs=1e-9)


def test_metrics_of_many_resamples_are_computed_at_once() -> None:
    found = labelled([(0, 0, 0.9), (1, 0, 0.6), (1, 1, 0.7), (2, 2, 0.5)])
    sums = np.stack([found.tally().sums(np.array(rows)) for rows in ([0, 1, 2, 3], [0, 0, 0, 0], [3, 2, 1, 1])])
    together = found.metrics(sums)
    for index in range(3):
        alone = found.metrics(sums[index])
        assert {name: float(value) for name, value in alone.items()} == pytest.approx(
            {name: float(value[index]) for name, value in together.items()}, nan_ok=True
        )


def test_a_label_that_is_never_given_has_no_precision_and_the_reason_is_said() -> None:
    found = labelled([(0, 0, 0.9), (1, 0, 0.6)])
    metrics = estimates(found.tally(), found.metrics, Resampling(100, 0), found.reasons())
    assert metrics["precision/b"].as_dict() == {
        "value": None,
        "interval": None,
        "reason": "no row was given this label",
    }
    assert metrics["recall/b"].value == 0.0
    assert metrics["f1/c"].reason == "no row has this label or was given it"


def test_labels_are_numbered_by_their_place() -> None:
    assert label_numbers(["c", "a", "c"], LABELS).tolist() == [2, 0, 2]
