"""The names of what is being written, deleted or replaced, by which the next writer finds what a killed one left.

    .tmp-NAME-0a1b2c3d      NAME while it is written; where it points to another, with the number of the process
    .trash-NAME-PID-TIME    NAME while it is deleted
    .old-NAME-TIME          NAME for the moment in which a new one takes its place

Only names of the whole form count: a user's own `.tmp-notes` is none of them. Where a directory may hold a user's
files, name the outputs as well: `.tmp-notes-20260101` has the form.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

Kind = Literal["tmp", "trash", "old"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ENDINGS: dict[Kind, str] = {"tmp": r"(?:[0-9a-f]{8}|\d{1,7})", "trash": r"\d+-\d+", "old": r"\d+"}


def leftovers(directory: Path, kind: Kind, names: str = ".+") -> list[Path]:
    """List what `directory` holds of a kind, of outputs whose names match a regular expression; empty where there is
    no such directory."""
    wanted = re.compile(rf"\.{kind}-(?:{names})-{ENDINGS[kind]}", re.DOTALL)
    return [path for path in directory.glob(f".{kind}-*") if wanted.fullmatch(path.name)]
