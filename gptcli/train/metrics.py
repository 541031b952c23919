"""The lines of a run's metrics.jsonl, read back. Imports no torch.

One rule for all readers: a kill may leave half a line at the end, which is no damage; any other line that is no record
is left out and counted.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from gptcli.base.units import count

Record = dict[str, Any]  # one line

MAX_STEP = 1 << 53  # a float counts them exactly
MAX_BYTES, MAX_LINE_BYTES = 1 << 30, 1 << 20  # far beyond what any run writes


def read_metrics(path: Path, problems: list[str]) -> list[Record]:
    """Read the records in order, each with a `kind` and a `step`; none where there is no file.

    What is wrong with the file is added to `problems`. Nothing but a regular file is read, and of that 1 GiB.
    """
    records: list[Record] = []
    damaged = size = 0
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                problems.append(f"{path.name}: is no regular file")
                return []
            while line := file.readline(MAX_LINE_BYTES):
                size += len(line)
                if size > MAX_BYTES:
                    problems.append(f"{path.name}: larger than {MAX_BYTES} bytes; read as far as that")
                    break
                if (record := parse_record(line)) is not None:
                    records.append(record)
                else:
                    damaged += line.endswith(b"\n") or len(line) == MAX_LINE_BYTES
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
    if damaged:
        problems.append(f"{path.name}: {count(damaged, 'damaged line')}")
    return records


def parse_record(line: bytes) -> Record | None:
    """Return the record that a line holds; None for any other line and for half a one."""
    try:
        record = json.loads(line)
        whole = line.endswith(b"\n") and isinstance(record["kind"], str)
        return record if whole and type(record["step"]) is int and 0 <= record["step"] < MAX_STEP else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def number_of(record: Record, name: str) -> float | None:
    """Return a finite number of a record, None where it has none of that name."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < float("inf") else None
