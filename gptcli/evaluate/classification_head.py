"""Labels by a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.base.errors import DataError, NumericalError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.config.finetune import Pooling
from gptcli.data.example import label_text
from gptcli.data.packing import group_by_tokens
from gptcli.device.processes import BY_ONE, Together
from gptcli.device.runtime import Runtime
from gptcli.evaluate.bootstrap import Floats
from gptcli.evaluate.items import Item
from gptcli.evaluate.result import Outcome, TruncationCounts, classified
from gptcli.evaluate.scoring import batch_tokens
from gptcli.model.attention import PackedSequences
from gptcli.model.gpt import GPT
from gptcli.train.loaded_model import LoadedModel

ROWS_AT_ONCE = 256


class Ensemble:
    """One classifier, or several of the same labels whose probabilities are averaged (Lakshminarayanan et al. 2017)."""

    def __init__(self, members: Sequence[LoadedModel]) -> None:
        """Take the members' common labels; DataError where a member names none, or others than the first."""
        self.members = members
        self.labels = common_labels([(member.directory, member.metadata.labels) for member in members])

    def probabilities(self, texts: Sequence[str]) -> tuple[Floats, set[int]]:
        """Return probabilities (texts, labels) float64, and the numbers of the texts that were cut to a context."""
        encoded = self.encode(texts)
        rooms = [member.model.config.context_length for member in self.members]
        cut = {number for number, of_members in enumerate(encoded) for ids, room in zip(of_members, rooms, strict=True)
               if len(ids) > room}  # fmt: skip
        return self.probabilities_of_ids(encoded), cut

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], ...]]:
        """Return the ids of each text, by each member. Touches no model, so that any thread may do it."""
        cleaned = [label_text(text) for text in texts]
        of_members = (
            [[*member.tokenizer.bos_ids, *ids] for ids in member.tokenizer.encode_batch(cleaned)]
            for member in self.members
        )
        return list(zip(*of_members, strict=True))

    def probabilities_of_ids(self, encoded: Sequence[tuple[list[int], ...]]) -> Floats:
        """Return the probabilities of texts that `encode` gave, of each as much as a context holds."""
        total = np.zeros((len(encoded), len(self.labels)))
        for number, member in enumerate(self.members):
            model = member.model
            sequences = [of_members[number][: model.config.context_length] for of_members in encoded]
            total += label_probabilities(model, sequences, member.runtime, pooling=member.metadata.pooling).numpy()
        return total / len(self.members)


def common_labels(named: Sequence[tuple[Path, tuple[str, ...]]]) -> tuple[str, ...]:
    """Return the labels of checkpoints, given with their directories; DataError where one has none, or others."""
    (first_directory, first), *_ = named
    for directory, labels in named:
        if not labels:
            raise DataError(f"{escape(str(directory))}: names no labels; make a classifier with gptcli finetune")
        if labels != first:
            raise DataError(
                f"{escape(str(directory))}: its labels are {escape(', '.join(labels))}, "
                f"those of {escape(str(first_directory))} {escape(', '.join(first))}; take models of the same labels"
            )
    return first


def classify_by_head(ensemble: Ensemble, items: Sequence[Item], report: Report) -> Outcome:
    """Label items by classification heads; as in training, a text that is too long loses its end."""
    labels = ensemble.labels
    for item in items:
        if item.answers[0] not in labels:
            known = ", ".join(labels)
            what = f"label '{escape(item.answers[0])}' is none of the model's: {escape(known)}"
            raise DataError(f"{item.place}: {what}; mend or drop the row")
    cuts, found = TruncationCounts(), np.zeros((len(items), len(labels)))
    for start in range(0, len(items), ROWS_AT_ONCE):
        texts = [item.text for item in items[start : start + ROWS_AT_ONCE]]
        found[start : start + len(texts)], cut = ensemble.probabilities(texts)
        cuts.rows_truncated += len(cut)
        report.progress("evaluate", start + len(texts), len(items))
    method: dict[str, Any] = {"method": "classification head"}
    if len(ensemble.members) > 1:
        method["members"] = [str(member.directory) for member in ensemble.members]
    return classified(items, labels, found, method, cuts)


@torch.inference_mode()
def label_probabilities(
    model: GPT, sequences: Sequence[list[int]], runtime: Runtime, *, pooling: Pooling, together: Together = BY_ONE
) -> Tensor:
    """Return probabilities (sequences, labels) float32 on the CPU, of id sequences that begin as Example.ids do.

    Several processes may compute them `together`. NumericalError where the model's output is not finite.
    """
    order = sorted(range(len(sequences)), key=lambda number: len(sequences[number]))  # so that attention pads little
    most = batch_tokens(on_cpu=runtime.on_cpu)
    groups = group_by_tokens((sequences[number] for number in order), most, len)
    parts = together.compute(groups, lambda group: _in_one_pass(model, group, runtime, pooling).flatten())
    found = torch.cat([numbers.view(len(group), -1) for group, numbers in parts])
    return torch.empty_like(found).index_copy_(0, torch.tensor(order), found)


def _in_one_pass(model: GPT, sequences: Sequence[list[int]], runtime: Runtime, pooling: Pooling) -> Tensor:
    layout = PackedSequences([len(ids) for ids in sequences], device=runtime.device)
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
