"""Labels by a classification head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gptcli.classifier import label_probabilities
from gptcli.errors import DataError
from gptcli.evaluation.items import Item
from gptcli.evaluation.outcome import Cuts, Loaded, Outcome, classified
from gptcli.report import Report
from gptcli.scoring import BATCH_TOKENS, begin


def classify_by_head(loaded: Loaded, items: Sequence[Item], report: Report) -> Outcome:
    """Labels by the classification head; as in its training, a text that is too long loses its end."""
    for item in items:
        if item.answers[0] not in loaded.labels:
            known = ", ".join(loaded.labels)
            raise DataError(f"{item.place}: label '{item.answers[0]}' is none of the model's: {known}")
    cuts, found = Cuts(), []
    for batch in _text_batches(loaded, items, cuts):
        found += label_probabilities(loaded.model, batch, loaded.runtime).double().tolist()
        report.progress("evaluate", len(found), len(items))
    return classified(items, loaded.labels, np.array(found), {"method": "classification head"}, cuts)


def _text_batches(loaded: Loaded, items: Sequence[Item], cuts: Cuts) -> Iterator[list[list[int]]]:
    first, batch, tokens = begin(loaded.tokenizer), list[list[int]](), 0
    for item in items:
        ids = loaded.tokenizer.encode(item.text)
        cuts.rows_truncated += len(ids) > loaded.room
        ids = first + ids[: loaded.room]
        if batch and tokens + len(ids) > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(ids)
        tokens += len(ids)
    yield batch
