"""Measure a checkpoint on text: loss, perplexity, bits per byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.api.tokens import documents_of, encode
from gptcli.api.trained_on import Kept, warn_of_training_text
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.data.text import Findings, Piece, TextOptions, decompressed_bytes, find_sources, read_pieces
from gptcli.evaluate.perplexity import TextScore, score_documents
from gptcli.generate.packed_weights import Quantize, pack


@dataclass(frozen=True)
class Evaluation:
    """The result of `gptcli evaluate`."""

    checkpoint: str
    score: TextScore
    documents: int
    context_length: int
    stride: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "loss_nats": self.score.loss_nats,
            "perplexity": self.score.perplexity,
            "bits_per_byte": self.score.bits_per_byte,
            "nats": self.score.nats,
            "tokens": self.score.tokens,
            "bytes": self.score.bytes,
            "documents": self.documents,
            "context_length": self.context_length,
            "stride": self.stride,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        return [
            ("loss", f"{self.score.loss_nats:.4f} nats per token"),
            ("perplexity", f"{self.score.perplexity:.3f}"),
            ("bits per byte", f"{self.score.bits_per_byte:.4f}"),
            ("tokens", f"{self.score.tokens:,}"),
            ("bytes", f"{self.score.bytes:,}"),
            ("checkpoint", self.checkpoint),
        ]


def evaluate(
    run: str | Path,
    inputs: Sequence[str],
    *,
    stride: int | None = None,
    quantize: Quantize | None = None,
    report: Report,
    reading: TextOptions | None = None,
    **how: Unpack[DeviceOptions],
) -> Evaluation:
    """Score every byte of the inputs once, and tell what of them the model was trained on. DataError where they hold no
    text."""
    opened = open_model(run, **how)
    model, tokenizer, runtime = opened.model, opened.tokenizer, opened.runtime
    if quantize:
        runtime = pack(model, runtime, quantize=quantize)
    context_length = model.config.context_length
    stride = min(stride or max(1, context_length // 2), context_length)
    options, found = reading or TextOptions(), Findings()
    all_pieces, total_bytes = _pieces(inputs, options, found, report)
    pieces, done_bytes = Kept(all_pieces), 0

    def counted() -> Iterator[Piece]:
        nonlocal done_bytes
        for piece in pieces:
            yield piece
            done_bytes += piece.raw_bytes

    scores = score_documents(
        model,
        tokenizer,
        (encode(tokenizer, document) for document in documents_of(counted())),
        runtime,
        stride=stride,
        progress=lambda tokens: report.progress("evaluate", done_bytes, total_bytes, f"{tokens:,} tokens", unit="B"),
    )
    nats, tokens, text_bytes, count = 0.0, 0, 0, 0
    for score in scores:
        nats, tokens, text_bytes = nats + score.nats, tokens + score.tokens, text_bytes + score.bytes
        count += 1
    report.progress("evaluate", done_bytes, done_bytes, unit="B")
    if not tokens:
        raise DataError(f"{escape(', '.join(inputs))}: no text to evaluate")
    found.tell(report, options)
    warn_of_training_text(opened.directory, pieces.pieces, escape(", ".join(inputs)), report)
    return Evaluation(str(opened.directory), TextScore(nats, tokens, text_bytes), count, context_length, stride)


def _pieces(
    inputs: Sequence[str], options: TextOptions, found: Findings, report: Report
) -> tuple[Iterator[Piece], int | None]:
    """Return the pieces of all inputs, and the bytes they will take where every one is a plain file."""
    sources = find_sources(inputs, options, report)
    plain = all(source.stream is None and source.path is not None and not source.compressed for source in sources)
    total = sum(decompressed_bytes(source, options) for source in sources) if plain else None
    return (piece for source in sources for piece in read_pieces(source, options, found)), total
