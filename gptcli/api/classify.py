"""Lines -> a label for each, with the probabilities of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.api.score import read_records
from gptcli.base.ready import Ready, always, blocks
from gptcli.device.runtime import keep_freed_memory
from gptcli.evaluate.classification_head import Ensemble, common_labels
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
        **how: Unpack[DeviceOptions],
    ) -> None:
        """`also`: other runs, whose probabilities are averaged with the first's. DataError where a model has no labels,
        or others."""
        directories = [find_checkpoint(path) for path in (run, *also)]
        common_labels([(path, read_metadata(path).labels) for path in directories])  # before any weights are read
        self.ensemble = Ensemble([open_model(path, **how) for path in directories])
        if self.ensemble.members[0].runtime.on_cpu:
            keep_freed_memory()

    def records(self, records: Iterable[dict[str, Any]], field: str, ready: Ready = always) -> Iterator[dict[str, Any]]:
        """Every record with its label and all probabilities, in order, up to a thousand at a time of those there."""
        for block in blocks(iter(records), LINES_AT_ONCE, ready):
            labels = self.ensemble.labels
            found, _ = self.ensemble.probabilities([record[field] for record in block])
            for record, best, row in zip(block, found.argmax(-1).tolist(), found.tolist(), strict=True):
                yield {**record, "label": labels[best], "probabilities": dict(zip(labels, row, strict=True))}


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
