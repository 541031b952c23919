"""A teacher's next tokens at every place of a text, computed once and kept in a cache.

index.json          {format, version, parts: {file: sha256}}
part-00000.bin ...  little-endian records {ids (k), log_p (k)}, one for each of PART_TOKENS tokens

A part appears whole or not at all, so that a cache in the making goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.data.shards import INDEX, mapped, token_dtype

FORMAT, VERSION = "gptcli-taught", 1
PART_TOKENS = 1 << 14


class Taught(NamedTuple):
    """The k likeliest tokens at every place, and log p of each."""

    ids: Tensor  # (..., k) int64
    log_p: Tensor  # (..., k) float32; of all tokens together p is 1, of these less


def record_dtype(vocab_size: int, top_k: int) -> np.dtype[Any]:
    """Return the type of what is kept of a token: in float16, log p is exact to 0.1 %."""
    return np.dtype([("ids", token_dtype(vocab_size).newbyteorder("<"), top_k), ("log_p", "<f2", top_k)])


class TaughtTokens:
    """A teacher's words on a text, a record for each token, read through memory maps."""

    def __init__(self, parts: Sequence[Path], dtype: np.dtype[Any]) -> None:
        self.parts: list[NDArray[Any]] = [mapped(part, dtype) for part in parts]

    def rows(self, starts: NDArray[np.int64], count: int) -> Taught:
        """Return what is said of the `count` tokens from each start (R,) on: (R, count, k)."""
        read = np.stack([self._read(int(start), count) for start in starts])
        return Taught(
            torch.from_numpy(read["ids"].astype(np.int64)), torch.from_numpy(read["log_p"].astype(np.float32))
        )

    def _read(self, start: int, count: int) -> NDArray[Any]:
        parts = []
        while count:
            number, offset = divmod(start, PART_TOKENS)
            part = self.parts[number][offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)


def keep_taught(
    directory: Path, tokens: int, dtype: np.dtype[Any], teach: Callable[[int, int], NDArray[Any]], report: Report
) -> TaughtTokens:
    """Return what `teach` (start, end) says of a text of so many tokens: the parts that the directory has, the missing
    ones computed."""
    fsio.make_directory(directory)
    with fsio.locked(directory, wait=report.message):
        known = _known_parts(directory)
        found: dict[Path, str] = {}
        for path, start, end in _parts(directory, tokens):
            is_there = path.is_file() and path.stat().st_size == (end - start) * dtype.itemsize
            sha256 = fsio.sha256(path) if is_there else None
            if sha256 is None or sha256 != known.get(path.name, sha256):
                fsio.write_file(path, teach(start, end).tobytes())
                report.progress("teacher", end, tokens)
                sha256 = fsio.sha256(path)
            found[path] = sha256
        index = {"format": FORMAT, "version": VERSION, "parts": {path.name: of for path, of in found.items()}}
        if index["parts"] != known:
            fsio.write_json(directory / INDEX, index)
    return TaughtTokens(list(found), dtype)


def _parts(directory: Path, tokens: int) -> Iterator[tuple[Path, int, int]]:
    for number, start in enumerate(range(0, tokens, PART_TOKENS)):
        yield directory / f"part-{number:05d}.bin", start, min(start + PART_TOKENS, tokens)


def _known_parts(directory: Path) -> dict[str, str]:
    """Return the hashes of a cache that was finished."""
    path = directory / INDEX
    try:
        index = fsio.read_json(path) if path.is_file() else None
    except DataError:
        return {}
    known = index.get("parts") if isinstance(index, dict) and index.get("format") == FORMAT else None
    return known if isinstance(known, dict) else {}
