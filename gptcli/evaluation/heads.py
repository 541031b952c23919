"""Labels by a classification head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptcli.classifier import label_probabilities
from gptcli.display import shown
from gptcli.errors import DataError
from gptcli.evaluation.items import Item
from gptcli.evaluation.outcome import Cuts, Loaded, Outcome, classified
from gptcli.report import Report
from gptcli.tasks.example import label_ids

ROWS_AT_ONCE = 256


def classify_by_head(loaded: Loaded, items: Sequence[Item], report: Report) -> Outcome:
    """Labels by the classification head; as in its training, a text that is too long loses its end."""
    for item in items:
        if item.answers[0] not in loaded.labels:
            known = ", ".join(loaded.labels)
            what = f"label '{shown(item.answers[0])}' is none of the model's: {shown(known)}"
            raise DataError(f"{item.place}: {what}; mend or drop the row")
    cuts, found = Cuts(), []
    for start in range(0, len(items), ROWS_AT_ONCE):
        sequences = [_sequence(loaded, item, cuts) for item in items[start : start + ROWS_AT_ONCE]]
        given = label_probabilities(loaded.model, sequences, loaded.runtime, pooling=loaded.pooling)
        found += given.double().tolist()
        report.progress("evaluate", len(found), len(items))
    return classified(items, loaded.labels, np.array(found), {"method": "classification head"}, cuts)


def _sequence(loaded: Loaded, item: Item, cuts: Cuts) -> list[int]:
    ids, room = label_ids(item.text, loaded.tokenizer), loaded.model.config.context_length
    cuts.rows_truncated += len(ids) > room
    return ids[:room]
