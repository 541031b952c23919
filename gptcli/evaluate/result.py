"""The answers of a model to labelled rows, and the sums that its metrics are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptcli.evaluate.bootstrap import Floats, Metrics, Tally
from gptcli.evaluate.classification import CALIBRATION_BINS, Labelled, label_numbers
from gptcli.evaluate.few_shot import Context
from gptcli.evaluate.items import Item


@dataclass(frozen=True)
class Outcome:
    """The answers of a model to all rows."""

    tally: Tally
    metrics: Metrics
    scores: dict[str, Floats]  # metrics that are means of a 0 or 1 for each row, with those
    records: list[dict[str, Any]]
    reasons: dict[str, str] = field(default_factory=dict)  # why a metric may have no value
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class TruncationCounts:
    """Counts of what did not fit the model's context."""

    rows_with_fewer_shots: int = 0
    shots_dropped: int = 0
    rows_truncated: int = 0

    def count(self, context: Context) -> None:
        self.rows_with_fewer_shots += context.dropped > 0
        self.shots_dropped += context.dropped


def classified(
    items: Sequence[Item],
    labels: tuple[str, ...],
    probabilities: Floats,
    details: dict[str, Any],
    cuts: TruncationCounts,
) -> Outcome:
    order = sorted(range(len(labels)), key=labels.__getitem__)  # the same for every model of these labels
    labels, probabilities = tuple(labels[index] for index in order), probabilities[:, order]
    given = probabilities.argmax(1)
    wanted = label_numbers([item.answers[0] for item in items], labels)
    labelled = Labelled(labels, wanted, given, probabilities.max(1))
    records = [
        {
            "place": item.place,
            "label": item.answers[0],
            "given": labels[number],
            "correct": labels[number] == item.answers[0],
            "probabilities": dict(zip(labels, row, strict=True)),
        }
        for item, number, row in zip(items, given.tolist(), probabilities.tolist(), strict=True)
    ]
    details = {
        **details,
        **vars(cuts),
        "labels": list(labels),
        "support": dict(zip(labels, labelled.confusion().sum(1).tolist(), strict=True)),
        "confusion": labelled.confusion().tolist(),
        "calibration_bins": CALIBRATION_BINS,
    }
    scores = {"accuracy": labelled.correct}
    return Outcome(labelled.tally(), labelled.metrics, scores, records, labelled.reasons(), details)


def means(columns: dict[str, Floats], binary: set[str], records: list[dict[str, Any]], details: Any) -> Outcome:
    names, n = list(columns), len(records)

    def metrics(sums: Floats) -> dict[str, Floats]:
        return {name: sums[..., index] / n for index, name in enumerate(names)}

    scores = {name: column for name, column in columns.items() if name in binary}
    return Outcome(Tally.of_columns(**columns), metrics, scores, records, details=details)
