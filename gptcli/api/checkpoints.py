"""List a run's checkpoints, and verify them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints


@dataclass(frozen=True)
class Listed:
    """A checkpoint as its directory describes it."""

    path: str
    step: int | None  # None where its config cannot be read
    bytes: int
    names: tuple[str, ...]  # latest, best
    problem: str | None  # None: nothing wrong was found

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "names": list(self.names)}

    def line(self) -> tuple[str, str]:
        """Return (name, facts) for a person."""
        facts = [f"{self.bytes / 1e6:,.1f} MB", *self.names, self.problem or "ok"]
        return Path(self.path).name, "  ".join(facts)


def list_checkpoints(directory: str | Path) -> list[Listed]:
    """Return the checkpoints of a run, or the one checkpoint that `directory` is, oldest first; contents are not
    checked."""
    return [_listed(path, "incomplete" if not (path / fsio.MANIFEST).is_file() else None) for path in _found(directory)]


def verify_checkpoints(directory: str | Path, report: Report) -> Iterator[Listed]:
    """Yield the same after a check of every byte: sizes, hashes, shapes, and that all weights are finite."""
    found = _found(directory)
    for number, path in enumerate(found):
        report.progress("verify", number, len(found), path.name)
        try:
            checkpoint.verify(path)
            problem = None
        except GptcliError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{escape(str(error.filename or path))}: {error.strerror}"
        yield _listed(path, problem)
    report.progress("verify", len(found), len(found))


def _found(directory: str | Path) -> list[Path]:
    path = fsio.follow(Path(directory))
    if not path.is_dir():
        raise ConfigError(f"{escape(str(path))}: no such directory; want a run or a checkpoint")
    if any((path / name).is_file() for name in ("config.json", "model.safetensors", fsio.MANIFEST)):
        return [path]
    if not (found := checkpoints(path)):
        raise DataError(f"{escape(str(path))}: holds no checkpoint; want the directory of a run or of a checkpoint")
    return found[::-1]


def _listed(path: Path, problem: str | None) -> Listed:
    run_dir = path.parent.parent
    links = {name: fsio.follow(run_dir / name) for name in ("latest", "best")}
    names = tuple(name for name, link in links.items() if link.is_dir() and link.samefile(path))
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    try:
        step = fsio.read_json(path / "config.json")["step"]
    except (DataError, OSError, KeyError, TypeError):
        step = None
    return Listed(str(path), step if isinstance(step, int) else None, size, names, problem)
