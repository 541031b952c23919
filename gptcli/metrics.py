"""What a model makes of text: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gptcli.data.tokenizer import Tokenizer
from gptcli.errors import NumericalError
from gptcli.loss import IGNORE, target_nats
from gptcli.model import GPT
from gptcli.runtime import Runtime

BATCH_TOKENS = 8192  # tokens of a forward pass in evaluation


@dataclass(frozen=True)
class TextScore:
    """Summed over a text: nats of its tokens, their number, and the UTF-8 bytes they stand for."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss_nats(self) -> float:
        """Mean cross-entropy of a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss_nats, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer: comparable between models and with a compressor."""
        return self.nats / math.log(2) / self.bytes


class Span(NamedTuple):
    """A window of a document: `ids` fed to the model, of which those from `first` on are scored."""

    document: int
    ids: list[int]
    first: int


def spans(document: int, ids: list[int], *, window: int, stride: int) -> Iterator[Span]:
    """Windows over a document in which every token is scored once, and after the first window sees at least
    window - stride tokens before it (as in Hugging Face's guide to the perplexity of fixed-length models)."""
    scored = 0
    while scored < len(ids):
        start = max(0, scored + stride - window) if scored else 0
        end = min(start + window, len(ids))
        yield Span(document, ids[start:end], scored - start)
        scored = end


@torch.inference_mode()
def score_documents(
    model: GPT,
    tokenizer: Tokenizer,
    documents: Iterable[list[int]],
    runtime: Runtime,
    *,
    stride: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[TextScore]:
    """The score of each document's ids, in order; specials among the ids are context and are not scored.

    Every window begins with <|endoftext|>, so that a document's first token is scored as well. stride: new tokens
    of a window, default half of the context. `progress` is called with the tokens scored so far. NumericalError where
    the model's output is not finite.
    """
    window = model.config.context_length
    stride = min(stride or max(1, window // 2), window)
    first = tokenizer.end_of_text if tokenizer.end_of_text is not None else 0
    lengths = torch.tensor([len(token) for token in tokenizer.token_bytes])
    for index in tokenizer.specials.values():
        lengths[index] = 0
    was_training = model.training
    model.eval()
    done = 0
    open_documents: dict[int, list[float]] = {}  # number -> nats, tokens, bytes, windows still to come
    next_number = 0
    for batch in _batches(spans_of(documents, open_documents, window, stride), max(1, BATCH_TOKENS // window)):
        width = max(len(span.ids) for span in batch)
        targets = torch.full((len(batch), width), IGNORE)
        inputs = torch.full((len(batch), width), first)
        for row, span in enumerate(batch):
            ids = torch.tensor(span.ids)
            inputs[row, 1 : len(ids)] = ids[:-1]
            targets[row, span.first : len(ids)] = ids[span.first :]
        byte_counts = torch.where(targets >= 0, lengths[targets.clamp_min(0)], 0)
        targets[byte_counts == 0] = IGNORE
        device = runtime.device
        hidden = model.hidden(inputs.to(device), dtype=runtime.dtype)
        nats = target_nats(hidden, model.head.weight, targets.to(device), cap=model.config.logit_softcap)
        sums = zip(
            batch,
            nats.double().sum(1).tolist(),
            (targets != IGNORE).sum(1).tolist(),
            byte_counts.sum(1).tolist(),
            strict=True,
        )
        for span, row_nats, row_tokens, row_bytes in sums:
            if not math.isfinite(row_nats):
                raise NumericalError(
                    "the model gives a non-finite loss; the checkpoint is damaged or was trained to NaN"
                )
            totals = open_documents[span.document]
            for position, amount in enumerate((row_nats, row_tokens, row_bytes, -1)):
                totals[position] += amount
            done += row_tokens
        progress(done)
        while next_number in open_documents and open_documents[next_number][3] == 0:
            row_nats, row_tokens, row_bytes, _ = open_documents.pop(next_number)
            yield TextScore(row_nats, int(row_tokens), int(row_bytes))
            next_number += 1
    model.train(was_training)


def spans_of(
    documents: Iterable[list[int]], open_documents: dict[int, list[float]], window: int, stride: int
) -> Iterator[Span]:
    """The spans of all documents; registers in `open_documents` how many each has."""
    for number, ids in enumerate(documents):
        found = list(spans(number, ids, window=window, stride=stride))
        # A document without tokens still gets its turn, as an empty span of one ignored position.
        found = found or [Span(number, [0], 1)]
        open_documents[number] = [0.0, 0, 0, len(found)]
        yield from found


def _batches(items: Iterator[Span], size: int) -> Iterator[list[Span]]:
    batch: list[Span] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
