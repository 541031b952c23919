"""The choice of a run's checkpoints: which are kept, and which one the run goes on from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from gptcli.base import fsio
from gptcli.base.errors import DataError, NumericalError
from gptcli.base.escape import escape
from gptcli.model.safetensors_io import part_of
from gptcli.train.checkpoint import TRAINING_FILE, verify
from gptcli.train.checkpoint_paths import checkpoints, step_directory
from gptcli.train.state import TrainState
from gptcli.train.weights import MODEL_FILE


def newest_verified(run_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that is whole, None where there is none at all. DataError where all are damaged.

    An OSError, which says nothing of the checkpoint (too many open files, a mount that hangs), is raised: to go on from
    an older one would delete those after it.
    """
    tried: list[str] = []
    for path in checkpoints(run_dir):
        try:
            verify(path)
        except (DataError, NumericalError, FileNotFoundError) as error:
            tried.append(str(error))
            continue
        if tried:
            warn(f"{'; '.join(tried)}: going on from {escape(str(path))}")
        return path
    if tried:
        raise DataError(*tried)
    return None


def keep(run_dir: Path, state: TrainState, count: int) -> None:
    """Verify the checkpoint of `state.step`, which was written last, and tidy. Processes that have a part of the model
    each call this together and verify their own files."""
    directory, processes = step_directory(run_dir, state.step), state.processes
    if state.sharded is None:
        fsio.verify(directory)
        tidy(run_dir, state, count)
        return
    files = itertools.product((MODEL_FILE, TRAINING_FILE), range(processes.count))
    writers = {part_of(directory / file, rank, processes.count).name: rank for file, rank in files}
    fsio.verify(directory, skip=lambda name: writers.get(name, 0) != processes.rank)
    processes.meet()
    processes.by_first(lambda: tidy(run_dir, state, count))


def tidy(run_dir: Path, state: TrainState, count: int) -> None:
    """Point latest and best at their checkpoints, and delete those that are neither best nor among the `count` newest.

    The caller has verified that of `state.step`, the newest. Checkpoints of later steps are damaged ones that a
    resumed run fell back from: they go too. A run calls this when it is resumed as well, before it publishes anything,
    so that crashes in a row do not add up.
    """
    newest = step_directory(run_dir, state.step)
    fsio.point(run_dir / "latest", f"checkpoints/{newest.name}")
    best = None if state.best_step is None else step_directory(run_dir, state.best_step)
    if best is not None and best.is_dir():
        fsio.point(run_dir / "best", f"checkpoints/{best.name}")
    found = checkpoints(run_dir)
    later = found[: found.index(newest)]
    for path in later + found[len(later) + count :]:
        if path != best:
            fsio.delete(path)
    if not fsio.follow(run_dir / "best").is_dir():
        fsio.remove_file(run_dir / "best")
