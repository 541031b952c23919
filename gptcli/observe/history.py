"""Runs, read from outside: what happened in their directories so far. Imports no torch; everything found there is read
with bounds, and damage becomes a run's `problem`."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.fsio.locks import LOCK, is_held
from gptcli.base.units import amount, duration
from gptcli.config import yaml_file
from gptcli.config.run_file import kind_of_run_file
from gptcli.train.metrics import MAX_STEP, Record, number_of, read_metrics

State = Literal["running", "finished", "interrupted", "failed", "empty"]
HEADER = ("run", "state", "step", "loss", "bits/byte", "tokens/s", "parameters", "age", "size", "problem")


@dataclass(frozen=True)
class RunFacts:
    """One run, in a line."""

    path: str
    state: State
    step: int
    steps: int | None  # wanted; None where the run file does not say it
    loss_nats: float | None  # last
    bits_per_byte: float | None  # best
    tokens_per_second: float | None
    parameters: int | None
    age_seconds: float  # since it last wrote metrics
    bytes: int
    problem: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> list[str]:
        """Return the cells of a table under HEADER."""
        return [
            self.path,
            self.state,
            str(self.step) if self.steps is None else f"{self.step}/{self.steps}",
            _number(self.loss_nats, ".4f"),
            _number(self.bits_per_byte, ".4f"),
            _number(self.tokens_per_second, ",.0f"),
            "-" if self.parameters is None else amount(self.parameters),
            duration(self.age_seconds),
            amount(self.bytes, "B"),
            self.problem or "",
        ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def find_runs(directories: Iterable[str | Path]) -> Iterator[Path]:
    """Yield run directories at or below each directory, in order of their names, then those that cannot be looked into.

    ConfigError for a directory that is not there.
    """
    for directory in directories:
        if not Path(directory).is_dir():
            raise ConfigError(f"{escape(str(directory))}: no such directory; name one that holds runs")
        unreadable: list[OSError] = []
        for place, names, files in os.walk(directory, onerror=unreadable.append):
            if "metrics.jsonl" in files or "checkpoints" in names or ("run.yaml" in files and LOCK in files):
                names.clear()  # a run holds no other runs
                yield Path(place)
            names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (Path(error.filename) for error in unreadable)


def read_run(run_dir: Path) -> RunFacts:
    """Return the facts of a run; what cannot be read becomes its `problem`."""
    problems: list[str] = []
    if not os.access(run_dir, os.R_OK | os.X_OK):
        problems.append("Permission denied")
    records = read_metrics(run_dir / "metrics.jsonl", problems)
    config = read_run_file(run_dir, problems)
    train = [record for record in records if record["kind"] == "train"]
    scores = [value for record in records if (value := number_of(record, "bits_per_byte")) is not None]
    told = max((record["step"] for record in records), default=0)
    step = max(told, *_saved_steps(run_dir), 0)
    steps = config.get("train.steps")
    steps = steps if type(steps) is int else None
    finished = steps is not None and told >= steps
    if records and records[-1]["kind"] == "end":  # with a budget or with patience, elsewhere than was planned
        finished, steps = True, step
    return RunFacts(
        path=str(run_dir),
        state=_state(run_dir, step, finished=finished),
        step=step,
        steps=steps,
        loss_nats=number_of(train[-1], "loss_nats") if train else None,
        bits_per_byte=min(scores, default=None),
        tokens_per_second=number_of(train[-1], "tokens_per_second") if train else None,
        parameters=count_parameters(run_dir, problems),
        age_seconds=max(0.0, time.time() - _modified(run_dir)),
        bytes=_bytes_below(run_dir),
        problem="; ".join(problems) or None,
    )


def _saved_steps(run_dir: Path) -> list[int]:
    """Return the steps of the checkpoints, which may be newer than the last metrics of a run that was stopped."""
    names = (path.name.removeprefix("step-") for path in run_dir.glob("checkpoints/step-*"))
    return [int(name) for name in names if name.isascii() and name.isdigit() and int(name) < MAX_STEP]


def read_run_file(run_dir: Path, problems: list[str]) -> dict[str, Any]:
    """Read run.yaml, of either kind of run, as strictly as it is read to train: dotted names and values."""
    path = run_dir / "run.yaml"
    if not os.path.lexists(path):
        problems.append("run.yaml: missing")
        return {}
    try:
        text = yaml_file.read(path, wait=False)
        config: Any = yaml_file.parse(kind_of_run_file(text), text, name="run.yaml").value
    except ConfigError as error:
        told = error.problems[0].replace(str(path), "run.yaml", 1)
        problems.append(f"{told} (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else told)
        return {}
    return dict(_flat(asdict(config)))


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _state(run_dir: Path, step: int, *, finished: bool) -> State:
    """Return how a run stands. One that stops in good order empties its lock file; a kill leaves its name there."""
    if is_held(run_dir):
        return "running"
    try:
        left = (run_dir / LOCK).stat().st_size > 0
    except OSError:
        left = False
    if finished:
        return "finished"
    if left:
        return "failed"
    return "interrupted" if step else "empty"


def count_parameters(run_dir: Path, problems: list[str]) -> int | None:
    """Count the weights of the newest checkpoint by the headers of its files; None where there is none."""
    found = sorted((run_dir / "checkpoints").glob("step-*/model*.safetensors"))
    if not found:
        return None
    newest = found[-1].parent
    try:
        total = 0
        for path in (path for path in found if path.parent == newest):
            if not path.is_file():
                raise OSError
            with safe_open(path, "np") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        return total
    except (OSError, SafetensorError):
        problems.append(f"checkpoints/{newest.name}: damaged")
        return None


def _modified(run_dir: Path) -> float:
    for name in ("metrics.jsonl", "run.yaml", "."):
        try:
            return (run_dir / name).stat().st_mtime
        except OSError:
            continue
    return time.time()


def _bytes_below(directory: Path) -> int:
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # deleted meanwhile
                continue
    return total


def metrics_of(run_dir: str | Path) -> list[Record]:
    """Return the records of a run that someone named; ConfigError or DataError where there are none."""
    path = Path(run_dir)
    if not path.is_dir():
        raise ConfigError(f"{escape(str(path))}: no such directory; want that of a run")
    problems: list[str] = []
    records = read_metrics(path / "metrics.jsonl", problems)
    if not records:
        raise DataError(f"{escape(str(path))}: {problems[0] if problems else 'no metrics.jsonl with records'}")
    return records
