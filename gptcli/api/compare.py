"""Compare two runs: where their run files differ, and their metrics side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.config.yaml_write import as_yaml
from gptcli.observe.curves import metric_names
from gptcli.observe.history import metrics_of, read_run, read_run_file
from gptcli.train.metrics import Record, number_of

SHOWN_STEPS = 6
AT_THE_END = ("state", "step", "loss_nats", "bits_per_byte", "tokens_per_second", "parameters", "bytes", "problem")


@dataclass(frozen=True)
class Comparison:
    """The result of `gptcli runs compare A B`; every pair is (A's, B's), with None where one has no value."""

    runs: tuple[str, str]
    settings: dict[str, tuple[Any, Any]]  # keys of the run files that differ
    at_steps: dict[int, dict[str, tuple[float, float]]]  # step -> metric -> values, where both have one
    at_the_end: dict[str, tuple[Any, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "runs": list(self.runs),
            "settings": self.settings,
            "at_steps": [{"step": step, **metrics} for step, metrics in self.at_steps.items()],
            "at_the_end": self.at_the_end,
        }

    def rows(self) -> list[list[str]]:
        """Return rows (name, A, B) for a person."""
        rows = [[name, *map(_shown, pair)] for name, pair in self.settings.items()]
        for step in _evenly(list(self.at_steps)):
            rows += [[f"step {step}: {name}", *map(_shown, pair)] for name, pair in self.at_steps[step].items()]
        return rows + [[f"at the end: {name}", *map(_shown, pair)] for name, pair in self.at_the_end.items()]


def compare(first: str, second: str) -> Comparison:
    """Compare two run directories. ConfigError or DataError where one holds no run."""
    records = [metrics_of(run) for run in (first, second)]
    files = [read_run_file(Path(run), []) for run in (first, second)]
    keys = dict.fromkeys([*files[0], *files[1]])
    facts = [read_run(Path(run)).as_dict() for run in (first, second)]
    ends = [name for name in AT_THE_END if name != "problem" or facts[0][name] or facts[1][name]]
    return Comparison(
        runs=(first, second),
        settings={
            key: (files[0].get(key), files[1].get(key)) for key in keys if files[0].get(key) != files[1].get(key)
        },
        at_steps=_at_equal_steps(*records),
        at_the_end={name: (facts[0][name], facts[1][name]) for name in ends},
    )


def _at_equal_steps(first: list[Record], second: list[Record]) -> dict[int, dict[str, tuple[float, float]]]:
    """Return step -> metric -> the losses and scores of both runs, where both have them."""
    values = [_by_step(records) for records in (first, second)]
    common = sorted(values[0].keys() & values[1].keys())
    steps: dict[int, dict[str, tuple[float, float]]] = {}
    for step in common:
        pairs = {
            name: (value, values[1][step][name]) for name, value in values[0][step].items() if name in values[1][step]
        }
        if pairs:
            steps[step] = pairs
    return steps


def _by_step(records: list[Record]) -> dict[int, dict[str, float]]:
    """Return step -> its training loss and every number of its validation."""
    names = [name for name in metric_names(records) if name == "train.loss_nats" or name.startswith("validation.")]
    found: dict[int, dict[str, float]] = {}
    for record in records:
        for name in names:
            kind, field = name.split(".", 1)
            if record["kind"] == kind and (value := number_of(record, field)) is not None:
                found.setdefault(record["step"], {})[name] = value
    return found


def _evenly(steps: list[int]) -> list[int]:
    """Pick at most SHOWN_STEPS of the steps, evenly spread, the last included."""
    every = max(1, -(-len(steps) // SHOWN_STEPS))
    return steps[::-1][::every][::-1]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else as_yaml(value) if isinstance(value, bool | tuple) else str(value)
