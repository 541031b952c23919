"""Labels by a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.base.report import Report
from gptcli.data.example import label_ids
from gptcli.evaluate.items import Item
from gptcli.evaluate.result import Cuts, Loaded, Outcome, classified
from gptcli.tasks.classify import label_probabilities

ROWS_AT_ONCE = 256


def classify_by_head(members: Sequence[Loaded], items: Sequence[Item], report: Report) -> Outcome:
    """Labels by the classification head, the mean over the models' where there are several of the same labels; as in
    its training, a text that is too long loses its end."""
    labels = members[0].labels
    for item in items:
        if item.answers[0] not in labels:
            known = ", ".join(labels)
            what = f"label '{shown(item.answers[0])}' is none of the model's: {shown(known)}"
            raise DataError(f"{item.place}: {what}; mend or drop the row")
    cuts, found = Cuts(), np.zeros((len(items), len(labels)))
    for start in range(0, len(items), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        cut = set()
        for loaded in members:
            sequences = [label_ids(item.text, loaded.tokenizer) for item in items[block]]
            room = loaded.model.config.context_length
            cut |= {number for number, ids in enumerate(sequences) if len(ids) > room}
            sequences = [ids[:room] for ids in sequences]
            found[block] += label_probabilities(loaded.model, sequences, loaded.runtime, pooling=loaded.pooling).numpy()
        cuts.rows_truncated += len(cut)
        report.progress("evaluate", min(start + ROWS_AT_ONCE, len(items)), len(items))
    method: dict[str, Any] = {"method": "classification head"}
    if len(members) > 1:
        method["members"] = [loaded.checkpoint for loaded in members]
    return classified(items, labels, found / len(members), method, cuts)
