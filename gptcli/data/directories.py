"""The files below a directory: which are read, and which are left out. Standard library only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptcli.base.errors import DataError, GptcliError
from gptcli.base.escape import escape
from gptcli.base.units import count
from gptcli.data.blocks import unreadable
from gptcli.data.compression import COMPRESSED_SUFFIXES, bare_name
from gptcli.data.kinds import JSONL_SUFFIXES, TABLE_SUFFIXES, TEXT_SUFFIXES, has_suffix

PREPARED_MARK = b'"gptcli-shards"'  # in the first bytes of the index.json of a prepared directory
MOST_NAMED = 4  # suffixes in a message


@dataclass
class Below:
    """The files that were found below a directory."""

    directory: str
    paths: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # by suffix
    deep: bool = False  # whether a file that is left out lies in a directory of its own
    own: list[str] = field(default_factory=list)  # directories that gptcli made

    def leave_out(self, path: Path) -> None:
        self.left_out[suffix_of(path.name)] += 1
        self.deep = self.deep or str(path.parent) != self.directory.rstrip("/")

    def what_is_left_out(self) -> str:
        """Describe the files left out: how many of each suffix, and a glob that takes the commonest; "" if there are
        none."""
        parts = [
            f"{number:,} {suffix or 'without a suffix'}" for suffix, number in self.left_out.most_common(MOST_NAMED)
        ]
        others = self.left_out.total() - sum(number for _, number in self.left_out.most_common(MOST_NAMED))
        parts += [f"{count(others, 'other')}"] if others else []
        said = []
        if parts:
            (suffix, _), *_ = self.left_out.most_common(1)
            pattern = os.path.join(self.directory, "**" if self.deep else "", f"*{suffix}")
            said.append(f"{', '.join(parts)} (name them, or a glob: '{escape(pattern)}')")
        if self.own:
            more = f" and {count(len(self.own) - 1, 'other')}" if len(self.own) > 1 else ""
            said.append(f"{escape(self.own[0])}{more}, made by gptcli")
        return "; ".join(said)

    def note(self) -> str:
        """Return one line that tells what is not read, "" where all is."""
        if not (self.left_out or self.own):
            return ""
        total = len(self.paths) + self.left_out.total()
        return (
            f"{escape(self.directory)}: read {len(self.paths):,} of {count(total, 'file')}; "
            f"left out {self.what_is_left_out()}"
        )


def suffix_of(name: str) -> str:
    """Return the suffix of a name, with that of a compression: `.json.gz`; "" for none."""
    bare = bare_name(name)
    packed = name.lower()[len(bare) :] if name.lower() != bare else ""
    return escape(Path(bare).suffix + packed, 20)


def files_below(directory: str, *, rows: bool) -> Below:
    """Return every file with a suffix of text, or of rows, below a directory, sorted; hidden ones are skipped.

    Links to directories are followed, each one once. What gptcli itself made (runs, prepared directories, its cache) is
    no corpus. A .json file is among them: whether it holds records is for its content to tell. Raises GptcliError for a
    directory that cannot be read.
    """
    wanted = (*JSONL_SUFFIXES, ".json", ".parquet", *(TABLE_SUFFIXES if rows else TEXT_SUFFIXES))
    found = Below(directory)
    errors: list[OSError] = []
    visited = set()
    for parent, directories, names in os.walk(directory, onerror=errors.append, followlinks=True):
        if os.path.realpath(parent) in visited:
            directories.clear()
            continue
        visited.add(os.path.realpath(parent))
        if is_own(parent, directories, names):
            found.own.append(parent)
            directories.clear()
            continue
        directories[:] = [name for name in directories if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            # A FIFO or a socket in the tree is nobody's corpus; a broken link is kept, to be reported.
            if name.startswith(".") or not (os.path.isfile(path) or not os.path.exists(path)):
                continue
            if has_suffix(name, wanted):
                found.paths.append(path)
            else:
                found.leave_out(path)
    if errors:
        raise GptcliError(*(str(unreadable(escape(error.filename), error)) for error in errors))
    found.paths.sort()
    return found


def nothing_below(found: Below, *, rows: bool) -> DataError:
    """Return what to tell the user about a directory in which nothing can be read."""
    suffixes = (*(TABLE_SUFFIXES if rows else TEXT_SUFFIXES), *JSONL_SUFFIXES, ".parquet")
    wanted = f"want {' '.join(suffixes)}, or these with {' '.join(COMPRESSED_SUFFIXES)}"
    there = f"; it has {left_out}" if (left_out := found.what_is_left_out()) else ""
    return DataError(f"{escape(found.directory)}: no {'rows' if rows else 'text files'} below; {wanted}{there}")


def is_own(parent: str, directories: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether gptcli made a directory, which holds these: a run, a checkpoint, prepared data or the cache."""
    if "run.yaml" in names and ("metrics.jsonl" in names or "checkpoints" in directories):
        return True
    weights = ("model.safetensors", "model-00001-of-", "adapter_model.safetensors")
    if "manifest.json" in names and any(name.startswith(weights) for name in names):
        return True
    if "work" in directories and set(directories) <= {"work", "prepared", "tokenizers"}:
        return not any(not name.startswith(".") for name in names)
    if "index.json" in names:
        try:
            with open(os.path.join(parent, "index.json"), "rb") as file:
                return PREPARED_MARK in file.read(256)
        except OSError:
            return False
    return False
