"""A GPT that names a label: what it learns from, what it says of texts, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.base.errors import NumericalError
from gptcli.config.finetune import Pooling
from gptcli.data.batches import Batch
from gptcli.data.packing import group_by_tokens
from gptcli.device.runtime import Runtime
from gptcli.evaluate.scoring import batch_tokens
from gptcli.model.attention import Packed
from gptcli.model.gpt import GPT
from gptcli.train.loss import IGNORE, head_cross_entropy


@dataclass(frozen=True)
class LabelObjective:
    """Cross-entropy of each example's label, with the loss of its text beside it as a regulariser."""

    class_weights: Tensor  # (labels,), 1 on the average of the training rows
    label_smoothing: float
    every_token_weight: float  # share that each token has a part of: a text's first words give their evidence directly
    text_loss_weight: float  # nats of an average token of the text count so much
    blank: int | None  # begins an example and stands for a dropped token: never predicted

    def __call__(self, model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
        """Summed over the examples, a float32 scalar."""
        assert batch.lengths is not None
        layout = Packed(batch.lengths, device=runtime.device)
        hidden = model.hidden(batch.inputs.to(runtime.device), dtype=runtime.dtype, layout=layout)
        labels = batch.targets[0].to(runtime.device)[layout.last]
        nats = self._nats(label_logits(model, hidden[0, layout.last]), labels).sum()
        if share := self.every_token_weight:
            lengths = torch.tensor(batch.lengths, device=runtime.device)
            every = self._nats(label_logits(model, hidden[0]), labels.repeat_interleave(lengths))
            nats = (1 - share) * nats + share * (every / lengths.repeat_interleave(lengths)).sum()
        if self.text_loss_weight:
            following = batch.inputs[0].roll(-1).to(runtime.device).index_fill(0, layout.last, IGNORE)
            following = following if self.blank is None else following.masked_fill(following == self.blank, IGNORE)
            text = head_cross_entropy(hidden, model.head.weight, following, cap=model.config.logit_softcap)
            tokens = (following != IGNORE).sum().clamp_min(1)
            nats = nats + self.text_loss_weight * len(labels) * text / tokens
        return nats

    def _nats(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of each label, (N,)."""
        weights = self.class_weights.to(logits.device)
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="none")


def label_logits(model: GPT, hidden: Tensor) -> Tensor:
    """Logits (N, labels), float32, of hidden states (N, C)."""
    assert model.label_head is not None
    return model.label_head(F.dropout(hidden, model.config.dropout, model.training)).float()


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
    probabilities = label_logits(model, hidden[0, layout.last]).softmax(-1)
    if pooling == "average":
        lengths = torch.tensor(layout.lengths, device=runtime.device)
        total = probabilities.new_zeros(probabilities.shape)
        owner = torch.arange(len(lengths), device=runtime.device).repeat_interleave(lengths)
        total.index_add_(0, owner, label_logits(model, hidden[0]))
        probabilities = (probabilities + (total / lengths[:, None]).softmax(-1)) / 2
    if not bool(torch.isfinite(probabilities).all()):
        raise NumericalError("non-finite probabilities; the checkpoint is damaged or was trained to NaN")
    return probabilities.cpu()


def accuracy_and_macro_f1(found: Tensor, wanted: Tensor, labels: int) -> tuple[float, float]:
    """Share of right labels, and the mean over the labels that occur of F1 = 2 right / (found + wanted)."""
    counts = torch.bincount(wanted * labels + found, minlength=labels * labels).view(labels, labels).double()
    right, all_found, all_wanted = counts.diag(), counts.sum(0), counts.sum(1)
    occurs = all_found + all_wanted > 0
    f1 = 2 * right[occurs] / (all_found + all_wanted)[occurs]
    return float(right.sum() / counts.sum()), float(f1.mean())
