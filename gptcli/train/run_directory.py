"""The run directory as a whole: whether it is free, what identifies the run in it, and its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError, RefusedError
from gptcli.base.escape import shown
from gptcli.data.shards import is_prepared
from gptcli.train import checkpoint
from gptcli.train.checkpoint import checkpoints
from gptcli.train.state import TrainState

# What may differ between a run and its resumption without making it another run.
FREE_TO_CHANGE = {
    "run_dir",
    "data.cache_dir",
    "train.steps",
    "train.budget",
    "train.epochs",
    "train.micro_batch_size",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.eval_tokens",
    "train.save_every_steps",
    "train.keep_checkpoints",
    "train.sample_every_steps",
    "train.sample_prompt",
    "train.sample_tokens",
    "train.tensorboard",
    "runtime.device",
    "runtime.threads",
    "runtime.compile",
}


def check_vacant(run_dir: Path, *, resume: bool, force: bool) -> None:
    """A directory with checkpoints is gone on with or begun again only when the user says which."""
    if resume and force:
        raise ConfigError("--resume goes on and --force begins again; pass one of them")
    fsio.sweep(run_dir)
    if (run_dir / "checkpoints").is_dir():
        fsio.sweep(run_dir / "checkpoints")
    found = checkpoint.checkpoints(run_dir)
    if resume or not found:
        return
    if not force:
        raise RefusedError(
            f"{shown(str(run_dir))}: holds a run ({found[0].name}); pass --resume to go on with it, "
            "--force to begin again, or name another run_dir"
        )


def clear(run_dir: Path) -> None:
    """Make room for a run that begins again; only when it is known that it can begin."""
    if (run_dir / "checkpoints").exists():
        fsio.delete(run_dir / "checkpoints")
    for link in ("latest", "best"):
        fsio.remove_file(run_dir / link)


def trim_metrics(path: Path, state: TrainState) -> None:
    """Drop the lines of what will be done again, the word that the run has ended, and half a line that a kill left."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
            again = state.pending and record["kind"] != "train"
            if record["step"] + again > state.step or not line.endswith(b"\n"):
                continue
            if record["kind"] == "end":
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line)
    fsio.write_file(path, b"".join(kept) if state.step else b"")


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, str]:
    """Dotted names of the values that differ -> ` (NEW, was OLD)`, nothing for a hash or a list."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for key in old.keys() | new.keys():
            found |= differences(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
        return found
    if old == new:
        return {}
    plain = isinstance(old, (int, float)) and isinstance(new, (int, float))
    return {prefix: f" ({new}, was {old})" if plain else ""}


def find_checkpoint(path: str | Path) -> Path:
    """Find the checkpoint that a user means by a run directory (its best, else its newest) or by its own directory."""
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "no such directory"
        raise ConfigError(f"{shown(str(path))}: {what}; want the directory of a run or of a checkpoint")
    candidates = [path, path / "best", path / "latest", *checkpoints(path)]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    if (path / "checkpoints").is_dir():
        raise DataError(f"{shown(str(path))}: the run has no complete checkpoint; go on with gptcli pretrain --resume")
    if is_prepared(path):
        raise DataError(f"{shown(str(path))}: is prepared text; train on it: data.train: [{shown(str(path))}]")
    if any((path / name).is_file() for name in ("model.safetensors", fsio.MANIFEST)):
        raise DataError(f"{shown(str(path / 'config.json'))}: missing; the checkpoint is damaged")
    runs = sorted(str(child) for child in path.iterdir() if (child / "checkpoints").is_dir())
    mend = f"did you mean {shown(runs[0])}?" if runs else "want the directory of a run or of a checkpoint"
    raise DataError(f"{shown(str(path))}: holds no checkpoint; {mend}")
