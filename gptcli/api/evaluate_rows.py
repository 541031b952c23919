"""Measure a checkpoint on labelled rows, and test whether its answers are better than another model's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.data.rows import load_rows
from gptcli.data.text import TextOptions
from gptcli.evaluate.bootstrap import Difference, Estimate, Resampling, differences, estimates
from gptcli.evaluate.classification_head import Ensemble, classify_by_head, common_labels
from gptcli.evaluate.few_shot import Shots
from gptcli.evaluate.generative import write
from gptcli.evaluate.items import Item, names_field, read_item
from gptcli.evaluate.loglikelihood import choose, classify_by_words
from gptcli.evaluate.options import RowOptions
from gptcli.evaluate.pairs import prefer
from gptcli.evaluate.result import Outcome
from gptcli.generate.packed_weights import Quantize, pack
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.loaded_model import LoadedModel
from gptcli.train.metadata import read_metadata


@dataclass(frozen=True)
class Measured:
    """One model's metrics."""

    checkpoint: str
    metrics: dict[str, Estimate]
    details: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint, **_nested(self.metrics), **self.details}


@dataclass(frozen=True)
class RowEvaluation:
    """The result of `gptcli evaluate --task`."""

    options: RowOptions
    rows: int
    resampling: Resampling
    measured: Measured
    other: Measured | None
    differences: dict[str, Difference] | None

    def as_dict(self) -> dict[str, Any]:
        document = {
            "task": self.options.task,
            "rows": self.rows,
            "shots": self.options.shots,
            "intervals": self.resampling.as_dict(),
            **self.measured.as_dict(),
        }
        if self.other is not None and self.differences is not None:
            document["compare"] = {**self.other.as_dict(), "differences": _nested(self.differences)}
        return document

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        found = []
        for name, estimate in self.measured.metrics.items():
            title = name.replace("_", " ").replace("/", " of ")
            found.append((title, str(estimate)))
            if self.other is not None and self.differences is not None and "/" not in name:
                found += [(f"  {self.other.checkpoint}", str(self.other.metrics[name])),
                          ("  difference", str(self.differences[name]))]  # fmt: skip
        details = self.measured.details
        for label, row in zip(details.get("labels", ()), details.get("confusion", ()), strict=True):
            given = ", ".join(f"{n} {name}" for name, n in zip(details["labels"], row, strict=True))
            found.append((f"rows of {label}", f"{sum(row)}, given as {given}"))
        how = f"{self.resampling.resamples} resamples, seed {self.resampling.seed}"
        others = [("with", member) for member in details.get("members", ())[1:]]
        return [*found, ("rows", f"{self.rows:,}"), ("intervals", f"95 %, percentile bootstrap over rows, {how}"),
                ("checkpoint", self.measured.checkpoint), *others]  # fmt: skip


def _nested(found: Mapping[str, Estimate] | Mapping[str, Difference]) -> dict[str, Any]:
    """Return the estimates under `metrics`, and those named METRIC/LABEL under `per_label`."""
    document: dict[str, Any] = {"metrics": {}}
    for name, value in found.items():
        metric, slash, label = name.partition("/")
        if slash:
            document.setdefault("per_label", {}).setdefault(label, {})[metric] = value.as_dict()
        else:
            document["metrics"][name] = value.as_dict()
    return document


def evaluate_rows(
    run: str | Path,
    inputs: Sequence[str],
    options: RowOptions,
    *,
    compare: str | Path | None = None,
    also: Sequence[str | Path] = (),
    records: str | Path | None = None,
    force: bool = False,
    text: TextOptions | None = None,
    quantize: Quantize | None = None,
    report: Report,
    **how: Unpack[DeviceOptions],
) -> RowEvaluation:
    """Ask the model, and the one to compare it with, every row; write what they said of each to `records`.

    `also`: runs of classifiers whose probabilities are averaged with those of the first.

    DataError for a row that is wrong, with its place, or no rows; RefusedError where `records` exists without `force`.
    """
    if records is not None:
        fsio.check_writable(Path(records), force=force)
        fsio.check_apart(Path(records), map(Path, (*inputs, *([options.shots_file] if options.shots_file else []))))
    if options.task == "pairs" and (options.template is not None or options.shots):
        raise ConfigError("--template, --shots: are of questions, and pairs are whole texts; leave them out")
    if bool(options.shots) != (options.shots_file is not None):
        raise ConfigError("--shots and --shots-file go together; pass both")
    if options.template is not None and not names_field(options.template):
        raise ConfigError("--template: names no field of a row; write one in braces, as {text}")
    directories = [find_checkpoint(path) for path in (run, compare) if path is not None]
    members = _members(directories[0], also, options)
    items = _read(inputs, options, text)
    shots = None
    if options.shots_file is not None:
        shots = Shots(_read([options.shots_file], options, text), options.shots, options.seed)
    asked = [[path] for path in directories]
    asked[0] += members
    outcomes = [_ask([_open(path, quantize, how) for path in paths], items, options, shots, report) for paths in asked]
    resampling = Resampling(options.resamples, options.seed)
    measured = [
        Measured(
            str(directory), estimates(outcome.tally, outcome.metrics, resampling, outcome.reasons), outcome.details
        )
        for directory, outcome in zip(directories, outcomes, strict=True)
    ]
    if records is not None:
        _write_records(Path(records), outcomes)
    if compare is None:
        return RowEvaluation(options, len(items), resampling, measured[0], None, None)
    first, second = outcomes
    if first.details.get("labels") != second.details.get("labels"):
        theirs, ours = (escape(", ".join(outcome.details["labels"])) for outcome in (second, first))
        raise DataError(
            f"{escape(str(compare))}: its labels are {theirs}, those of {escape(str(run))} {ours}; "
            "compare models of the same labels"
        )
    scores = {name: (column, second.scores[name]) for name, column in first.scores.items()}
    found = differences(first.tally, second.tally, first.metrics, resampling, scores)
    return RowEvaluation(options, len(items), resampling, measured[0], measured[1], found)


def _read(inputs: Sequence[str], options: RowOptions, text: TextOptions | None) -> list[Item]:
    rows = load_rows(
        inputs, lambda row: read_item(row, options.task, options.template), on_bad_line="error", options=text
    )
    return rows.items


def _open(directory: Path, quantize: Quantize | None, how: DeviceOptions) -> LoadedModel:
    opened = open_model(directory, **how)
    if quantize:
        return dataclasses.replace(opened, runtime=pack(opened.model, opened.runtime, quantize=quantize))
    return opened


def _by_words(options: RowOptions) -> bool:
    return options.template is not None or bool(options.label_words) or bool(options.shots)


def _members(first: Path, also: Sequence[str | Path], options: RowOptions) -> list[Path]:
    """Return the other checkpoints of an ensemble."""
    if also and (options.task != "classify" or _by_words(options)):
        raise ConfigError("--with: averages what classification heads say; leave it out")
    directories = [find_checkpoint(path) for path in also]
    if also:
        common_labels([(path, read_metadata(path).labels) for path in (first, *directories)])
    return directories


def _ask(
    members: list[LoadedModel], items: list[Item], options: RowOptions, shots: Shots | None, report: Report
) -> Outcome:
    loaded = members[0]
    match options.task:
        case "classify" if loaded.metadata.labels and not _by_words(options):
            outcome = classify_by_head(Ensemble(members), items, report)
        case "classify":
            outcome = classify_by_words(loaded, items, _label_words(items, options, shots), options, shots, report)
        case "choice":
            outcome = choose(loaded, items, options, shots, report)
        case "pairs":
            outcome = prefer(loaded, items, options, report)
        case "generate":
            outcome = write(loaded, items, options, shots, report)
    cuts = outcome.details
    if cuts["rows_truncated"]:
        report.warning(f"{cuts['rows_truncated']:,} of {count(len(items), 'row')} did not fit the context and were cut")
    if cuts["shots_dropped"]:
        rows = cuts["rows_with_fewer_shots"]
        report.warning(
            f"{count(cuts['shots_dropped'], 'shot')} of {count(rows, 'row')} did not fit the context and were left out"
        )
    return outcome


def _label_words(items: list[Item], options: RowOptions, shots: Shots | None) -> dict[str, str]:
    """Return the labels, of the option or else of the rows in alphabetical order, and the words that stand for each."""
    given = dict(options.label_words)
    there = items if shots is None else [*items, *shots.pool]
    if not given:
        labels = sorted({item.answers[0] for item in there})
        if len(labels) < 2:
            raise DataError(
                f"{items[0].place}: every row has the label '{escape(labels[0])}'; name all with --label-word"
            )
        return {label: label for label in labels}
    for item in there:
        if item.answers[0] not in given:
            raise DataError(
                f"{item.place}: label '{escape(item.answers[0])}' has no words; add --label-word LABEL=WORDS"
            )
    return given


def _write_records(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a line for every row; with two models, the second's answer is under `compare`."""
    with fsio.replacing(path) as file:
        for first, *others in zip(*(outcome.records for outcome in outcomes), strict=True):
            record = {**first, "compare": others[0]} if others else first
            file.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
