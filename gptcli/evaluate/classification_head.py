"""Labels by a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.base.errors import DataError, NumericalError
from gptcli.base.escape import shown
from gptcli.base.report import Report
from gptcli.config.finetune import Pooling
from gptcli.data.example import label_ids
from gptcli.data.packing import group_by_tokens
from gptcli.device.runtime import Runtime
from gptcli.evaluate.items import Item
from gptcli.evaluate.result import Cuts, Loaded, Outcome, classified
from gptcli.evaluate.scoring import batch_tokens
from gptcli.model.attention import Packed
from gptcli.model.gpt import GPT

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


@torch.inference_mode()
def label_probabilities(model: GPT, sequences: Sequence[list[int]], runtime: Runtime, *, pooling: Pooling) -> Tensor:
    """Probabilities (sequences, labels) float32 on the CPU, of id sequences that begin as Example.ids do.

    NumericalError where the model's output is not finite.
    """
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))  # so that attention pads little
    most = batch_tokens(on_cpu=runtime.on_cpu)
    groups = group_by_tokens((sequences[number] for number in order), most, len)
    found = torch.cat([_in_one_pass(model, group, runtime, pooling) for group in groups])
    return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def _in_one_pass(model: GPT, sequences: Sequence[list[int]], runtime: Runtime, pooling: Pooling) -> Tensor:
    layout = Packed([len(ids) for ids in sequences], device=runtime.device)
    inputs = torch.tensor([[index for ids in sequences for index in ids]], device=runtime.device)
    hidden = model.hidden(inputs, dtype=runtime.dtype, layout=layout)
    probabilities = model.label_logits(hidden[0, layout.last]).softmax(-1)
    if pooling == "average":
        lengths = torch.tensor(layout.lengths, device=runtime.device)
        total = probabilities.new_zeros(probabilities.shape)
        owner = torch.arange(len(lengths), device=runtime.device).repeat_interleave(lengths)
        total.index_add_(0, owner, model.label_logits(hidden[0]))
        probabilities = (probabilities + (total / lengths[:, None]).softmax(-1)) / 2
    if not bool(torch.isfinite(probabilities).all()):
        raise NumericalError("non-finite probabilities; the checkpoint is damaged or was trained to NaN")
    return probabilities.cpu()
