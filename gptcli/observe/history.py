"""Runs, read from outside: what happened in their directories so far. Nothing here imports torch or takes a lock for
longer than it takes to look."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import shown
from gptcli.base.fsio.locks import LOCK, is_held
from gptcli.base.units import amount, count, duration

State = Literal["running", "finished", "interrupted", "failed", "empty"]
MOST_STEPS = 1 << 53  # a float counts them exactly
RUN_FILE_BYTES = 1 << 20
HEADER_BYTES = 100 << 20  # of a safetensors file, the format's own bound
Record = dict[str, Any]  # one line of metrics.jsonl
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
        """For a person, under HEADER."""
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
    """Run directories at or below each directory, in order of their names. ConfigError for one that is not there."""
    for directory in directories:
        if not Path(directory).is_dir():
            raise ConfigError(f"{shown(str(directory))}: no such directory; name one that holds runs")
        for place, names, files in os.walk(directory):
            if "metrics.jsonl" in files or "checkpoints" in names or ("run.yaml" in files and LOCK in files):
                names.clear()  # a run holds no other runs
                yield Path(place)
            names[:] = sorted(name for name in names if not name.startswith("."))


def read_run(run_dir: Path) -> RunFacts:
    """The facts of a run; what cannot be read becomes its `problem`."""
    problems: list[str] = []
    records = read_metrics(run_dir, problems)
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
    """Of the checkpoints: metrics are written now and then, and a run that is stopped is saved where it is."""
    names = (path.name.removeprefix("step-") for path in run_dir.glob("checkpoints/step-*"))
    return [int(name) for name in names if name.isascii() and name.isdigit() and int(name) < MOST_STEPS]


def read_metrics(run_dir: Path, problems: list[str]) -> list[Record]:
    """The records of metrics.jsonl that are whole, in order; a run that is killed may leave half a line at the end."""
    path = run_dir / "metrics.jsonl"
    records, damaged = [], 0
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"metrics.jsonl: {error.strerror}")
        return []
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line)
            if type(record["step"]) is not int or not isinstance(record["kind"], str):
                raise TypeError
            if not 0 <= record["step"] < MOST_STEPS:
                raise ValueError
            records.append(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += line.endswith(b"\n")
    if damaged:
        problems.append(f"metrics.jsonl: {count(damaged, 'damaged line')}")
    return records


def number_of(record: Record, name: str) -> float | None:
    """A finite number of a record."""
    value = record.get(name)
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if good else None  # type: ignore[arg-type]  # a number, as `good` says


def read_run_file(run_dir: Path, problems: list[str]) -> dict[str, Any]:
    """run.yaml as dotted names and values, of any kind of run."""
    import yaml

    path = run_dir / "run.yaml"
    try:
        with path.open("rb") as file:
            document = yaml.safe_load(file.read(RUN_FILE_BYTES))
    except FileNotFoundError:
        problems.append("run.yaml: missing")
        return {}
    except OSError as error:
        problems.append(f"run.yaml: {error.strerror}")
        return {}
    except (yaml.YAMLError, ValueError, RecursionError):
        problems.append("run.yaml: damaged")
        return {}
    if not isinstance(document, dict):
        problems.append("run.yaml: damaged")
        return {}
    return dict(_flat(document))


def _flat(section: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _state(run_dir: Path, step: int, *, finished: bool) -> State:
    """A run that stops in good order empties its lock file; one that fails or is killed leaves its name there."""
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
    """Weights of the newest checkpoint, by the header of its file; None where there is none."""
    found = sorted((run_dir / "checkpoints").glob("step-*/model.safetensors"))
    if not found:
        return None
    try:
        with found[-1].open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size < HEADER_BYTES:
                raise ValueError
            header = json.loads(file.read(size))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        problems.append(f"checkpoints/{found[-1].parent.name}: damaged")
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
    """The records of a run that someone named; ConfigError or DataError where there are none."""
    path = Path(run_dir)
    if not path.is_dir():
        raise ConfigError(f"{shown(str(path))}: no such directory; want that of a run")
    problems: list[str] = []
    records = read_metrics(path, problems)
    if not records:
        raise DataError(f"{shown(str(path))}: {problems[0] if problems else 'no metrics.jsonl with records'}")
    return records
