"""Metrics as TensorBoard scalars, with the extra `tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.errors import ConfigError
from gptcli.history import Record, number_of


class Board:
    """An event file: every number of a record becomes the scalar KIND/FIELD at its step."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def add(self, record: Record) -> None:
        for name in record:
            if name != "step" and (value := number_of(record, name)) is not None:
                self.writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def open_board(directory: Path) -> Board:
    """A board that writes to `directory`; ConfigError where the package is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        raise ConfigError("the package tensorboard is not installed; pip install 'gptcli[tensorboard]'") from None
    directory.mkdir(parents=True, exist_ok=True)
    return Board(Writer(str(directory)))
