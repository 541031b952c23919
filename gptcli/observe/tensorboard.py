"""Metrics as TensorBoard scalars, with the extra `tensorboard`. metrics.jsonl stays the record of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.train.metrics import Record, number_of

EVENT_FILES = "events.out.tfevents.*"


def check_installed(*, wanted: bool = True) -> None:
    """Raise ConfigError where TensorBoard is wanted and its package is not installed."""
    if not wanted:
        return
    try:
        import tensorboard.summary  # noqa: F401
    except ImportError:
        raise ConfigError("the package tensorboard is not installed; pip install 'gptcli[tensorboard]'") from None


class Board:
    """An event file: every number of a record becomes the scalar KIND/FIELD at its step."""

    def __init__(self, directory: Path) -> None:
        check_installed()
        from tensorboard.summary import Writer

        directory.mkdir(parents=True, exist_ok=True)
        self.writer: Any = Writer(str(directory))

    def add(self, record: Record) -> None:
        for name in record:
            if name != "step" and (value := number_of(record, name)) is not None:
                self.writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


@contextmanager
def recording(directory: Path, warn: Callable[[str], None], *, wanted: bool) -> Iterator[Callable[[Record], None]]:
    """Yield a function that adds a record of a run to the board in `directory`, or does nothing unless `wanted`.

    A failure is warned of once and stops no run.
    """
    board: Board | None = None

    def attempt(work: Callable[[], object]) -> None:
        nonlocal board
        try:
            work()
        except (OSError, ValueError, RuntimeError) as error:
            warn(f"{escape(str(directory))}: {error}; no more TensorBoard scalars are written")
            board = None

    def begin() -> None:
        nonlocal board
        board = Board(directory)

    def add(record: Record) -> None:
        if (found := board) is None:
            return

        def work() -> None:
            found.add(record)
            found.flush()

        attempt(work)

    if wanted:
        attempt(begin)
    try:
        yield add
    finally:
        if board is not None:
            attempt(board.close)
