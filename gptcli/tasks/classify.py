"""A GPT that names a label: what it learns from, what it says of texts, and how good that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.data.batches import IGNORE, Batch
from gptcli.device.runtime import Runtime
from gptcli.model.attention import Packed
from gptcli.model.gpt import GPT
from gptcli.train.loss import head_cross_entropy


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
        nats = self._nats(model.label_logits(hidden[0, layout.last]), labels).sum()
        if share := self.every_token_weight:
            lengths = torch.tensor(batch.lengths, device=runtime.device)
            every = self._nats(model.label_logits(hidden[0]), labels.repeat_interleave(lengths))
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
