"""Checkpoint and text -> loss, perplexity, bits per byte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptcli import checkpoint
from gptcli.config import RuntimeConfig
from gptcli.data.text import TextOptions
from gptcli.errors import DataError
from gptcli.metrics import TextScore, score_documents
from gptcli.report import Report
from gptcli.runs.tokens import documents
from gptcli.runtime import make_runtime
from gptcli.weights import Quantize, pack


@dataclass(frozen=True)
class Evaluation:
    """What `gptcli evaluate` prints."""

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
        """For a person."""
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
    field: str = "text",
    encoding: str = "utf-8",
    errors: Literal["strict", "replace", "ignore"] = "strict",
    device: str = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    threads: int | None = None,
    quantize: Quantize | None = None,
    report: Report,
) -> Evaluation:
    """Score every byte of the inputs once. DataError where they hold no text."""
    directory = checkpoint.resolve(run)
    runtime = make_runtime(RuntimeConfig(device=device, dtype=dtype, threads=threads), inference=True)
    model, tokenizer = checkpoint.load(directory, device=runtime.device, dtype=runtime.dtype)
    if quantize:
        pack(model, runtime, quantize=quantize)
    context_length = model.config.context_length
    stride = min(stride or max(1, context_length // 2), context_length)
    options = TextOptions(field=field, encoding=encoding, errors=errors)
    ids = [[index for text in document for index in tokenizer.encode(text)] for document in documents(inputs, options)]
    total = sum(map(len, ids))
    if not total:
        raise DataError(f"{', '.join(inputs)}: no text to evaluate")
    scores = list(
        score_documents(
            model,
            tokenizer,
            ids,
            runtime,
            stride=stride,
            progress=lambda done: report.progress("evaluate", done, total),
        )
    )
    whole = TextScore(sum(s.nats for s in scores), sum(s.tokens for s in scores), sum(s.bytes for s in scores))
    return Evaluation(str(directory), whole, len(scores), context_length, stride)
