"""Classify lines: a label for each, with the probabilities of all labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.base.ready import Ready, always, blocks
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.data.jsonl import answered, read_records
from gptcli.device.runtime import keep_freed_memory
from gptcli.evaluate.classification_head import Ensemble, common_labels
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import read_metadata

LINES_AT_ONCE = 1024


class Classifier:
    """A loaded model that classifies texts, or an ensemble that does so together (Lakshminarayanan et al. 2017)."""

    def __init__(
        self,
        run: str | Path,
        *,
        also: Sequence[str | Path] = (),
        **how: Unpack[DeviceOptions],
    ) -> None:
        """Load a classifier; the probabilities of the runs `also` are averaged with its own.

        Raises DataError where a model has no labels, or others than the first.
        """
        directories = [find_checkpoint(path) for path in (run, *also)]
        common_labels([(path, read_metadata(path).labels) for path in directories])  # before any weights are read
        self.ensemble = Ensemble([open_model(path, **how) for path in directories])
        if self.ensemble.members[0].runtime.on_cpu:
            keep_freed_memory()

    def records(
        self, records: Iterable[dict[str, Any]], field: str, ready: Ready = always, report: Report | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield every record with its label and all probabilities, in order, up to a thousand at a time of those there.

        A field `label` that a record has of its own becomes `input_label`. The report is told at the end how many there
        were, and how many texts were longer than the context.
        """
        report = report or Report()
        labels, cut, kept = self.ensemble.labels, 0, 0
        for block in blocks(iter(records), LINES_AT_ONCE, ready):
            found, block_cut = self.ensemble.probabilities([record[field] for record in block])
            cut += len(block_cut)
            for record, best, row in zip(block, found.argmax(-1).tolist(), found.tolist(), strict=True):
                answer = {"label": labels[best], "probabilities": dict(zip(labels, row, strict=True))}
                kept += not answer.keys().isdisjoint(record)
                yield answered(record, answer)
        if cut:
            report.warning(f"{count(cut, 'text')} cut to the context of the model: their ends were not read")
        if kept:
            report.warning(
                f"{count(kept, 'record')} had a field 'label' or 'probabilities' of their own; it came back as "
                "'input_label' or 'input_probabilities'"
            )


def classify(
    run: str | Path,
    lines: Iterable[bytes],
    *,
    ready: Ready = always,
    jsonl: bool = False,
    field: str = "text",
    report: Report | None = None,
    **how: Any,
) -> Iterator[dict[str, Any]]:
    """Return the records that lines are, each with `label` and `probabilities`; DataError names a line that is
    wrong."""
    return Classifier(run, **how).records(read_records(lines, jsonl=jsonl, field=field), field, ready, report)
