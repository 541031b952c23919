"""Names of a run's checkpoints: where they lie, and which one a user means."""

from __future__ import annotations

import re
from pathlib import Path

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.data.shards import is_prepared

POINTERS = ("best", "latest")
STEP_NAME = re.compile(r"step-(\d{6,})")


def step_directory(run_dir: Path, step: int) -> Path:
    """Return the directory of the checkpoint after `step` steps."""
    return run_dir / "checkpoints" / f"step-{step:06d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """List the directories under checkpoints/ that are named as checkpoints, newest first, without looking inside."""
    found = (run_dir / "checkpoints").glob("step-*")
    named = [(int(match[1]), path) for path in found if (match := STEP_NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(named, reverse=True)]


def find_checkpoint(path: str | Path) -> Path:
    """Find the checkpoint that a user means by a run directory (its best, else its newest) or by its own directory."""
    path = fsio.follow(Path(path))
    if not path.is_dir():
        what = "is a file" if path.is_file() else "no such directory"
        raise ConfigError(f"{escape(str(path))}: {what}; want the directory of a run or of a checkpoint")
    candidates = [path, *(fsio.follow(path / name) for name in POINTERS), *checkpoints(path)]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    if (path / "checkpoints").is_dir():
        raise DataError(f"{escape(str(path))}: the run has no complete checkpoint; go on with gptcli pretrain --resume")
    if is_prepared(path):
        raise DataError(f"{escape(str(path))}: is prepared text; train on it: data.train: [{escape(str(path))}]")
    if any((path / name).is_file() for name in ("model.safetensors", fsio.MANIFEST)):
        raise DataError(f"{escape(str(path / 'config.json'))}: missing; the checkpoint is damaged")
    runs = sorted(str(child) for child in path.iterdir() if (child / "checkpoints").is_dir())
    mend = f"did you mean {escape(runs[0])}?" if runs else "want the directory of a run or of a checkpoint"
    raise DataError(f"{escape(str(path))}: holds no checkpoint; {mend}")
