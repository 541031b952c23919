"""Token shards: files of uint16 or uint32 ids, read through memory maps as one long sequence per split.

index.json   {format, version, dtype, vocab_size, tokenizer_sha256, inputs, splits}
tokenizer.json
train-00000.bin ...             little-endian ids, documents one after another, each begun by <|endoftext|>
train-00000.documents.bin ...   uint64 positions, in the split, of the documents that begin in the shard
validation-...                  likewise
"""

from __future__ import annotations

import bisect
import errno
import itertools
import mmap
import os
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.device.machine import device_memory_bytes

FORMAT, VERSION = "gptcli-shards", 1
INDEX = "index.json"
SPLITS = ("train", "validation")
RESIDENT_SHARE = 1 / 8  # of a device's memory, which training tokens may take
SIGNED = {2: torch.int16, 4: torch.int32}  # PyTorch indexes those, and not the unsigned ones everywhere


@dataclass
class SplitIndex:
    """The entry of index.json for one split."""

    tokens: int = 0
    bytes: int = 0
    documents: int = 0
    max_id: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)  # {file, tokens, documents, sha256}


class Encoded(NamedTuple):
    """The ids of a text.Piece."""

    ids: Sequence[int] | NDArray[Any]
    text_bytes: int
    starts_document: bool
    raw_bytes: int


class SplitWriter:
    """A writer that appends documents to the shards of one split; a shard is a file that appears when it is whole."""

    def __init__(self, directory: Path, split: str, dtype: np.dtype[Any], index: SplitIndex | None = None) -> None:
        self.directory, self.split, self.dtype = directory, split, dtype
        self.index = index or SplitIndex()
        self._clear()

    def _clear(self) -> None:
        self.waiting = bytearray()
        self.borders = array("Q")

    @property
    def waiting_tokens(self) -> int:
        return len(self.waiting) // self.dtype.itemsize

    def add(self, piece: Encoded) -> None:
        self.append(piece.ids, text_bytes=piece.text_bytes, starts_document=piece.starts_document)

    def append(self, ids: Sequence[int] | NDArray[Any], *, text_bytes: int, starts_document: bool) -> None:
        if starts_document:
            self.borders.append(self.index.tokens + self.waiting_tokens)
        self.waiting += np.asarray(ids, dtype=self.dtype).tobytes()
        self.index.bytes += text_bytes

    def flush(self) -> None:
        """Make what was appended durable: a shard and the positions of the documents that begin in it."""
        if self.waiting_tokens:
            self._write_shard("documents", np.array(self.borders, dtype=np.uint64))

    def _write_shard(self, beside: str, described: NDArray[Any]) -> None:
        """Write the tokens that wait, and what is to lie beside them."""
        ids = np.frombuffer(self.waiting, dtype=self.dtype)
        name = f"{self.split}-{len(self.index.shards):05d}"
        for suffix, content in (("bin", ids), (f"{beside}.bin", described)):
            little_endian = content.astype(content.dtype.newbyteorder("<"), copy=False)
            fsio.write_file(self.directory / f"{name}.{suffix}", little_endian.tobytes())
        sha256 = fsio.sha256(self.directory / f"{name}.bin")
        shard = {"file": f"{name}.bin", "tokens": len(ids), "documents": len(self.borders), "sha256": sha256}
        self.index.shards.append(shard)
        self.index.tokens += len(ids)
        self.index.documents += len(self.borders)
        self.index.max_id = max(self.index.max_id, int(ids.max(initial=0)))
        self._clear()


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def write_index(directory: Path, *, vocab_size: int, splits: dict[str, SplitIndex], **facts: Any) -> None:
    document = {
        "format": FORMAT,
        "version": VERSION,
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        **facts,
        "splits": {name: asdict(split) for name, split in splits.items()},
    }
    fsio.write_json(directory / INDEX, document)


def is_prepared(path: Path) -> bool:
    return (path / INDEX).is_file()


def read_index(directory: Path) -> dict[str, Any]:
    """Return the checked index.json of a prepared directory; DataError where it is not one."""
    path = directory / INDEX
    if not path.is_file():
        raise ConfigError(f"{escape(str(directory))}: no {INDEX}; make the directory with gptcli prepare")
    index = fsio.read_json(path)
    if not isinstance(index, dict) or index.get("format") != FORMAT or index.get("version") != VERSION:
        raise DataError(f"{escape(str(path))}: not the index of {FORMAT} version {VERSION}; run gptcli prepare again")
    try:
        index["splits"] = {name: SplitIndex(**index["splits"][name]) for name in SPLITS}
        if index["dtype"] != token_dtype(index["vocab_size"]).name:
            raise ValueError("dtype does not fit vocab_size")
        for split in index["splits"].values():
            names = [shard["file"] for shard in split.shards]
            if any("/" in name or name.startswith(".") for name in names):
                raise ValueError("a shard lies outside of the directory")
            if split.tokens != sum(shard["tokens"] for shard in split.shards):
                raise ValueError("the shards do not add up")
            if split.max_id >= index["vocab_size"]:
                raise ValueError(f"id {split.max_id} is outside of the vocabulary of {index['vocab_size']}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{escape(str(path))}: {escape(str(error))}; run gptcli prepare again") from None
    return index


def mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the tokens of a file, read when they are used. Without MADV_RANDOM the kernel would read far
    ahead for each row of a batch, which is much slower for files that memory does not hold. Some file systems map
    nothing: there all of the file is read."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return np.zeros(0, dtype)
        try:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP):
                raise OSError(error.errno, error.strerror, str(path)) from None
            return np.fromfile(path, dtype)
    if hasattr(mmap, "MADV_RANDOM"):
        mapping.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapping, dtype)


class TokenArray:
    """The tokens of one split as one sequence over memory-mapped shards."""

    def __init__(self, directory: Path, split: str) -> None:
        """Map the shards of a split; DataError names one that is missing or has the wrong size."""
        index = read_index(directory)
        self.index: SplitIndex = index["splits"][split]
        dtype = self.dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self.shards: list[NDArray[Any]] = []
        for shard in self.index.shards:
            path = directory / shard["file"]
            have = path.stat().st_size if path.is_file() else None
            want = shard["tokens"] * dtype.itemsize
            if have != want:
                found = "is missing" if have is None else f"has {have} bytes, want {want}"
                raise DataError(f"{escape(str(path))}: {found}; run gptcli prepare again")
            self.shards.append(mapped(path, dtype))
        self.starts = [0, *itertools.accumulate(len(shard) for shard in self.shards)]

    def __len__(self) -> int:
        return self.starts[-1]

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Return tokens start .. start + count, fewer at the end."""
        parts = []
        end = min(start + count, len(self))
        while start < end:
            number = bisect.bisect_right(self.starts, start) - 1
            offset = start - self.starts[number]
            part = self.shards[number][offset : offset + end - start]
            parts.append(part)
            start += len(part)
        if not parts:
            return np.zeros(0, dtype=np.int64)
        return np.concatenate(parts).astype(np.int64)

    def rows(self, starts: NDArray[np.int64], count: int) -> Tensor:
        """Map the `count` tokens from each start (R,) on -> (R, count) int64; all of them must be there."""
        return torch.from_numpy(np.stack([self.read(int(start), count) for start in starts]))

    def place(self, position: int) -> str:
        """Return `FILE:OFFSET` of a token, for messages."""
        number = bisect.bisect_right(self.starts, position) - 1
        return f"{self.index.shards[number]['file']}:{position - self.starts[number]}"


class ResidentTokens:
    """The tokens of a TokenArray in the memory of a device, where the rows of a batch are gathered without the CPU."""

    def __init__(self, tokens: TokenArray, device: torch.device) -> None:
        self.array = tokens
        self.flat = torch.empty(len(tokens), dtype=SIGNED[tokens.dtype.itemsize], device=device)
        for start, shard in zip(tokens.starts, tokens.shards, strict=False):  # one start more than shards
            signed = shard.view(f"<i{tokens.dtype.itemsize}")
            self.flat[start : start + len(shard)] = torch.from_numpy(np.array(signed))

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, starts: NDArray[np.int64], count: int) -> Tensor:
        """Return `count` tokens from each start, (rows, count) int64 on the device, as TokenArray.rows does."""
        device = self.flat.device
        places = torch.from_numpy(starts).to(device)[:, None] + torch.arange(count, device=device)
        return self.flat[places].long() & ((1 << 8 * self.flat.itemsize) - 1)  # signed as they lie, not as they are

    def place(self, position: int) -> str:
        return self.array.place(position)


def near(tokens: TokenArray, device: torch.device) -> TokenArray | ResidentTokens:
    """Return the tokens where a device reads them fastest: in the memory of CUDA, if there is room."""
    room = RESIDENT_SHARE * device_memory_bytes(device) if device.type == "cuda" else 0
    return ResidentTokens(tokens, device) if len(tokens) * tokens.dtype.itemsize <= room else tokens
