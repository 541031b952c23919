"""Which checkpoints of a run stay, and what `latest` and `best` name."""

from __future__ import annotations

from pathlib import Path

from gptcli.base import fsio
from gptcli.train.checkpoint import TrainState, checkpoints, step_directory


def keep(run_dir: Path, state: TrainState, count: int) -> None:
    """Point latest and best at their checkpoints, and delete those that are neither best nor among the newest.

    Nothing is deleted before the newest has been verified. Checkpoints of later steps are damaged ones that a resumed
    run fell back from: they go too.
    """
    newest = step_directory(run_dir, state.step)
    fsio.verify(newest)
    fsio.point(run_dir / "latest", f"checkpoints/{newest.name}")
    best = None if state.best_step is None else step_directory(run_dir, state.best_step)
    if best is not None and best.is_dir():
        fsio.point(run_dir / "best", f"checkpoints/{best.name}")
    found = checkpoints(run_dir)
    later = found[: found.index(newest)]
    for path in later + found[len(later) + count :]:
        if path != best:
            fsio.delete(path)
    if not (run_dir / "best").exists():
        fsio.remove_file(run_dir / "best")
