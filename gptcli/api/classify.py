"""Lines -> a label for each, with the probabilities of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from gptcli.api.open_model import load
from gptcli.api.score import read_records
from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.base.ready import Ready, always, blocks
from gptcli.config.train import RuntimeConfig
from gptcli.data.example import label_text
from gptcli.device.runtime import keep_freed_memory, make_runtime
from gptcli.evaluate.classification_head import label_probabilities
from gptcli.train.metadata import read_metadata
from gptcli.train.run_directory import find_checkpoint

LINES_AT_ONCE = 1024


class Classifier:
    """A loaded model that names the label of texts, or several that name it together (Lakshminarayanan et al. 2017)."""

    def __init__(
        self,
        run: str | Path,
        *,
        also: Sequence[str | Path] = (),
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        threads: int | None = None,
    ) -> None:
        """`also`: other runs, whose probabilities are averaged with the first's. DataError where a model has no labels,
        or others."""
        directories = [find_checkpoint(path) for path in (run, *also)]
        self.labels = common_labels(directories)
        self.runtime = make_runtime(RuntimeConfig(device=device, dtype=dtype, threads=threads), inference=True)
        self.members = [
            (
                *load(path, device=self.runtime.device, dtype=self.runtime.dtype),
                read_metadata(path),
            )
            for path in directories
        ]
        if self.runtime.on_cpu:
            keep_freed_memory()

    def probabilities(self, texts: list[str]) -> torch.Tensor:
        """(texts, labels) float64. Of a text that is longer than the context, the end is not read."""
        total = torch.zeros(len(texts), len(self.labels), dtype=torch.float64)
        for model, tokenizer, metadata in self.members:
            encoded = tokenizer.encode_batch([label_text(text) for text in texts])
            sequences = [[*tokenizer.first, *ids][: model.config.context_length] or [0] for ids in encoded]
            total += label_probabilities(model, sequences, self.runtime, pooling=metadata.pooling)
        return total / len(self.members)

    def records(self, records: Iterable[dict[str, Any]], field: str, ready: Ready = always) -> Iterator[dict[str, Any]]:
        """Every record with its label and all probabilities, in order, up to a thousand at a time of those there."""
        for block in blocks(iter(records), LINES_AT_ONCE, ready):
            found = self.probabilities([record[field] for record in block])
            for record, best, row in zip(block, found.argmax(-1).tolist(), found.tolist(), strict=True):
                yield {**record, "label": self.labels[best], "probabilities": dict(zip(self.labels, row, strict=True))}


def common_labels(directories: Sequence[Path]) -> tuple[str, ...]:
    """The labels that all these checkpoints name; DataError where one names none, or others than the first."""
    first, *others = (read_metadata(directory).labels for directory in directories)
    for directory, labels in zip(directories, (first, *others), strict=True):
        if not labels:
            raise DataError(f"{shown(str(directory))}: names no labels; make a classifier with gptcli finetune")
        if labels != first:
            raise DataError(
                f"{shown(str(directory))}: its labels are {shown(', '.join(labels))}, "
                f"those of {shown(str(directories[0]))} {shown(', '.join(first))}; take models of the same labels"
            )
    return first


def classify(
    run: str | Path,
    lines: Iterable[bytes],
    *,
    ready: Ready = always,
    jsonl: bool = False,
    field: str = "text",
    **how: Any,
) -> Iterator[dict[str, Any]]:
    """The records that lines are, each with `label` and `probabilities`; DataError names a line that is wrong."""
    return Classifier(run, **how).records(read_records(lines, jsonl=jsonl, field=field), field, ready)
