"""The run directory as a whole: whether it is free, what identifies the run in it, and its metrics."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, RefusedError
from gptcli.base.escape import escape
from gptcli.base.fsio.locks import LOCK
from gptcli.config import yaml_file, yaml_write
from gptcli.config.run_file import kind_of_run_file
from gptcli.config.schema import Section
from gptcli.train.checkpoint_paths import POINTERS, STEP_NAME, checkpoints
from gptcli.train.metrics import parse_record
from gptcli.train.state import TrainState


def check_vacant(run_dir: Path, *, resume: bool, force: bool) -> None:
    """Check that a run may begin, go on or begin again in a directory that is held locked, and sweep it.

    RefusedError where it holds checkpoints and the user has not said whether to resume or to replace them, or files
    that gptcli did not make where the run would put its own; then nothing is swept.
    """
    if resume and force:
        raise ConfigError("--resume goes on and --force begins again; pass one of them")
    _check_own(run_dir, new=not checkpoints(run_dir))
    fsio.sweep(run_dir, "|".join(map(re.escape, (*POINTERS, "run.yaml", "metrics.jsonl"))))
    fsio.sweep(run_dir / "checkpoints", STEP_NAME.pattern)
    found = checkpoints(run_dir)
    if resume or not found:
        return
    if not force:
        raise RefusedError(
            f"{escape(str(run_dir))}: holds a run ({found[0].name}); pass --resume to go on with it, "
            "--force to begin again, or name another run_dir"
        )
    if not _is_run_file(run_dir / "run.yaml", new=False):
        raise _not_made(run_dir, "run.yaml")
    for path in found:
        if reason := fsio.foreign(path):
            raise RefusedError(
                f"{escape(str(path))}: {reason}, so that --force does not delete it; remove it or name another run_dir"
            )


def _check_own(run_dir: Path, *, new: bool) -> None:
    """Raise RefusedError where a run would replace a file that gptcli did not make."""
    found = [name for name in POINTERS if os.path.lexists(run_dir / name) and not _is_pointer(run_dir / name)]
    if new and not _is_metrics(run_dir / "metrics.jsonl"):
        found.append("metrics.jsonl")
    if new and not _is_run_file(run_dir / "run.yaml", new=True):
        found.append("run.yaml")
    if found:
        raise _not_made(run_dir, found[0])


def _not_made(run_dir: Path, name: str) -> RefusedError:
    return RefusedError(
        f"{escape(str(run_dir))}: holds {name}, which gptcli did not make; name another run_dir, or move that file"
    )


def _is_pointer(path: Path) -> bool:
    target = fsio.pointed(path)
    return target is not None and re.fullmatch(r"checkpoints/step-\d{6,}", target) is not None


def _is_metrics(path: Path) -> bool:
    """Return whether a file is missing, or begins as a metrics.jsonl of gptcli's does."""
    if not os.path.lexists(path):
        return True
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    if not line.endswith(b"\n"):  # nothing, or what a kill left of the first line
        return not line or line.startswith(b'{"kind": ')
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"kind", "step"} <= record.keys()


def _is_run_file(path: Path, *, new: bool) -> bool:
    """Return whether a file is missing, or the complete run file that a run writes. That of a run which is there,
    not `new`, may be of an older version and lack lines."""
    if not os.path.lexists(path):
        return True
    try:
        text = yaml_file.read(path)
        complete = yaml_write.dump(yaml_file.parse(kind_of_run_file(text), text, name="run.yaml").value)
    except ConfigError:
        return False
    return text == complete if new else set(text.splitlines()) <= set(complete.splitlines())


def write_run_file(path: Path, config: Section) -> None:
    """Write the complete run file of a run, unless the one that is there says all of it, with a user's comments."""
    with suppress(ConfigError):
        there = yaml_file.parse(type(config), yaml_file.read(path), name="run.yaml")
        if there.value == config and all(origin.startswith("run.yaml:") for origin in there.origins.values()):
            return
    fsio.write_file(path, yaml_write.dump(config))


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold a run directory as its only writer; one that was made for a run that could not begin goes again."""
    was_there = os.path.lexists(run_dir)
    fsio.check_writable(run_dir / "run.yaml", force=True)
    with fsio.locked(run_dir):
        try:
            yield
        except BaseException:
            if not was_there and os.listdir(run_dir) == [LOCK]:
                fsio.delete(run_dir)
            raise


def clear(run_dir: Path) -> None:
    """Delete the checkpoints of a run that begins again, once it is known that it can begin. The oldest goes first, so
    that a crash on the way leaves a run that can be resumed."""
    for path in reversed(checkpoints(run_dir)):
        fsio.delete(path)
    for name in POINTERS:
        fsio.remove_file(run_dir / name)


def trim_metrics(path: Path, state: TrainState) -> None:
    """Drop the lines of what will be done again, the word that the run has ended, and half a line that a kill left."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        record = parse_record(line)
        if record is None or record["kind"] == "end":
            continue
        again = state.post_step_pending and record["kind"] != "train"
        if record["step"] + again <= state.step:
            kept.append(line)
    fsio.write_file(path, b"".join(kept) if state.step else b"")
