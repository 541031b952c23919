"""Classification: the label of a text, learnt on its last token by a head of its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.data.batches import IGNORE, Batch
from gptcli.data.example import Example, Reader, cut_example, label_of, label_text, named_by
from gptcli.data.rows import Row
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Together
from gptcli.device.runtime import Runtime
from gptcli.evaluate.classification import Labelled
from gptcli.evaluate.classification_head import label_probabilities
from gptcli.model.attention import PackedSequences
from gptcli.model.gpt import GPT, evaluating
from gptcli.tasks.task import Task, load_examples
from gptcli.train.loss import head_cross_entropy
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Validation


def classify(config: FinetuneConfig, tokenizer: Tokenizer, base: ModelMetadata, max_tokens: int) -> Task:
    """Make the task; its labels are those of the training rows."""
    data, options = config.data, config.classify
    labels = tuple(sorted(set(load_examples(data.train, lambda row: label_of(row, data.label_field), data).items)))
    if len(labels) < 2:
        names = escape(", ".join(data.train))
        raise DataError(f"{names}: every row has the label {escape(repr(labels[0]))}; give two labels or more")
    metadata = ModelMetadata(labels, base.conversation, pooling=options.pooling)
    dropped = options.token_dropout
    if dropped is None:  # a well-read model takes the mark for the end of a text, and knows words by others anyway
        dropped = 0.0 if base.origin else 0.3

    def objective(examples: Sequence[Example]) -> LabelObjective:
        return LabelObjective(
            _class_weights(examples, len(labels), balanced=options.class_weights != "none"),
            options.label_smoothing,
            options.every_token_weight,
            options.text_loss_weight,
            tokenizer.end_of_text,
        )

    return Task(
        tokenizer,
        metadata,
        _reader(data, tokenizer, labels, max_tokens),
        objective,
        functools.partial(_validate, metadata=metadata),
        writes=False,
        token_dropout=dropped,
    )


def _reader(data: RowsConfig, tokenizer: Tokenizer, labels: Sequence[str], max_tokens: int) -> Reader:
    """Read a text and the label it has, which is learnt on the last token. A text that is too long loses its end."""
    numbers = {label: number for number, label in enumerate(labels)}

    def read(row: Row) -> Example:
        text, label = row.text(data.text_field, advice=named_by("text_field")), label_of(row, data.label_field)
        if not text.strip():
            raise DataError(f"{row.place}: the text is empty; write it or drop the row")
        if label not in numbers:
            known = ", ".join(escape(name, 40) for name in labels)
            raise DataError(f"{row.place}: label {escape(repr(label))} is not in the training rows; they have {known}")
        ids = [*tokenizer.bos_ids, *tokenizer.encode(label_text(text))]
        return cut_example(row.place, ids, [False] * len(ids), max_tokens)._replace(label=numbers[label])

    return read


@dataclass(frozen=True)
class LabelObjective:
    """Cross-entropy of each example's label, with the loss of its text beside it as a regulariser."""

    class_weights: Tensor  # (labels,), 1 on the average of the training rows
    label_smoothing: float
    every_token_weight: float  # share that each token has a part of: a text's first words give their evidence directly
    text_loss_weight: float  # nats of an average token of the text count so much
    blank: int | None  # begins an example and stands for a dropped token: never predicted

    def __call__(self, model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
        """Return the loss summed over the examples, a float32 scalar."""
        assert batch.lengths is not None
        layout = PackedSequences(batch.lengths, device=runtime.device, dropout=model.dropout_rate)
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
            text = head_cross_entropy(
                hidden, model.head.weight, following, cap=model.config.logit_softcap, bias=model.head.bias
            )
            tokens = (following != IGNORE).sum().clamp_min(1)
            nats = nats + self.text_loss_weight * len(labels) * text / tokens
        return nats

    def _nats(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each label, (N,)."""
        weights = self.class_weights.to(logits.device)
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="none")


def _class_weights(rows: Sequence[Example], labels: int, *, balanced: bool) -> Tensor:
    """Return weights (labels,), 1 on the average of the rows; if balanced, 0 for a label that none of them has."""
    counts = torch.bincount(torch.tensor([row.label for row in rows]), minlength=labels)
    if not balanced:
        return torch.ones(len(counts))
    there = counts > 0
    return torch.where(there, len(rows) / (there.sum() * counts.clamp_min(1)), 0.0)


@torch.inference_mode()
def _validate(
    model: GPT, rows: Sequence[Example], runtime: Runtime, together: Together, *, metadata: ModelMetadata
) -> Validation:
    """Measure accuracy and macro-F1 on held-out rows."""
    texts = [row.ids for row in rows]
    with evaluating(model):
        probabilities = label_probabilities(model, texts, runtime, pooling=metadata.pooling, together=together)
    wanted = torch.tensor([row.label for row in rows])
    confidence, given = (found.numpy() for found in probabilities.double().max(-1))
    accuracy, macro_f1 = Labelled(metadata.labels, wanted.numpy(), given, confidence).accuracy_and_macro_f1()
    loss = float(-probabilities.gather(1, wanted[:, None]).clamp_min(1e-30).log().mean())
    record = {"loss_nats": loss, "accuracy": accuracy, "macro_f1": macro_f1}
    text = f"validation accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f}, loss {loss:.4f} nats"
    return Validation(1 - macro_f1, record, text, f"validation macro-F1 {macro_f1:.3f}")
