"""The scores of text under a model: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice, tee
from typing import NamedTuple

import torch

from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import BY_ONE, Together
from gptcli.device.runtime import Runtime
from gptcli.evaluate.scoring import Sequence, score_sequences
from gptcli.model.gpt import GPT


@dataclass(frozen=True)
class TextScore:
    """Sums over a text: nats of its tokens, their number, and the UTF-8 bytes they stand for."""

    nats: float
    tokens: int
    bytes: int

    def __add__(self, other: TextScore) -> TextScore:
        return TextScore(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)

    @property
    def loss_nats(self) -> float:
        """Return the mean cross-entropy of a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss_nats, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Return bits per byte, comparable between models whatever their tokenizer, and with a compressor."""
        return self.nats / math.log(2) / self.bytes


class Span(NamedTuple):
    """A window of a document: `ids` fed to the model, of which those from `first` on are scored."""

    document: int
    ids: list[int]
    first: int


def spans(document: int, ids: Iterable[int], *, window: int, stride: int) -> Iterator[Span]:
    """Yield windows over a document in which every token is scored once.

    After the first window a token sees at least window - stride tokens before it (as in Hugging Face's guide to the
    perplexity of fixed-length models). Holds no more than a window. A document without tokens has one span without
    tokens.
    """
    ids = iter(ids)
    context: list[int] = []
    new = list(islice(ids, window))
    yield Span(document, new, 0)
    while new:
        context = (context + new)[stride - window :] if stride < window else []
        new = list(islice(ids, stride))
        if new:
            yield Span(document, context + new, len(context))


def score_documents(
    model: GPT,
    tokenizer: Tokenizer,
    documents: Iterable[Iterable[int]],
    runtime: Runtime,
    *,
    stride: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
    together: Together = BY_ONE,
) -> Iterator[TextScore]:
    """Yield the score of each document's ids, in order; specials among the ids are context and are not scored.

    Every window begins with <|endoftext|>, so that a document's first token is scored as well; with a tokenizer that
    has none, the first token of a document is given, and is not scored. stride: new tokens of a window, default half
    of the context. `progress` is called with the tokens scored so far. Memory is bounded
    for a document of any length. NumericalError where the model's output is not finite.
    """
    done = 0
    scored = score_windows(model, tokenizer, documents, runtime, stride=stride, together=together)
    for _, parts in groupby(scored, key=lambda pair: pair[0]):
        whole = TextScore(0.0, 0, 0)
        for _, part in parts:
            whole += part
            done += part.tokens
            progress(done)
        yield whole


def score_windows(
    model: GPT,
    tokenizer: Tokenizer,
    documents: Iterable[Iterable[int]],
    runtime: Runtime,
    *,
    stride: int | None = None,
    together: Together = BY_ONE,
) -> Iterator[tuple[int, TextScore]]:
    """Yield the number of a document and the score of a window of it, window by window, as `score_documents` adds them
    up. No more than one batch of windows is computed for each, or one in each of several processes that call this
    `together`."""
    window = model.config.context_length
    stride = min(stride or max(1, window // 2), window)
    first = tokenizer.bos_ids
    lengths = torch.tensor([len(token) for token in tokenizer.token_bytes])
    for index in tokenizer.specials.values():
        lengths[index] = 0
    all_spans = (spans(number, ids, window=window, stride=stride) for number, ids in enumerate(documents))
    found, again = tee(chain.from_iterable(all_spans))  # they are never more than a batch for each process apart
    sequences = (Sequence(first + span.ids, max(1, len(first) + span.first)) for span in found)
    for span, part in zip(again, score_sequences(model, sequences, runtime, together=together), strict=True):
        given = max(span.first, 1 - len(first))
        byte_counts = lengths[torch.tensor(span.ids[given:], dtype=torch.long)]
        ordinary = byte_counts > 0
        nats = float(part.nats.double()[ordinary].sum())
        yield span.document, TextScore(nats, int(ordinary.sum()), int(byte_counts.sum()))
