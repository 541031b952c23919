"""The bytes of an input: read in bounded blocks, decompressed, and never waited for at a terminal.

raw_blocks ─ decompressed ─> content_blocks
"""

import codecs
import errno
import hashlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, TypedDict

from gptcli.base.errors import ConfigError, GptcliError
from gptcli.base.escape import escape
from gptcli.data.compression import Compression, decompressed

PIECE_BYTES = 1 << 20  # characters of a piece at most, and bytes read at a time
HEAD_BYTES = 8 << 10  # looked at to tell what a file holds

Kind = Literal["text", "jsonl", "json", "parquet"]

# Python's codecs for host names and source literals: no file is written in them, and they can yield lone surrogates.
_NOT_FOR_FILES = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}


class Reading(TypedDict, total=False):
    """The fields of TextOptions that callers of the Python API give."""

    field: str
    encoding: str
    errors: Literal["strict", "replace", "ignore"]
    separator: str | None
    on_bad_row: Literal["error", "skip"]


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The way in which inputs are read.

    `field` of a record holds its text. `errors` says what becomes of what is no character: undecodable bytes, and lone
    surrogates in JSON. `separator` divides a text file into documents, see data.separator. `flags`: messages name
    options of the command line (--encoding) and not keys of a run file (data.encoding).
    """

    field: str = "text"
    encoding: str = "utf-8"
    errors: Literal["strict", "replace", "ignore"] = "strict"
    separator: str | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    flags: bool = True

    def setting(self, key: str, value: str) -> str:
        """Return how a user sets an option of this class: `--encoding utf-16` or `-s data.encoding=utf-16`."""
        return f"--{key.replace('_', '-')} {value}" if self.flags else f"-s data.{key}={value}"


@dataclass(frozen=True)
class Source:
    """One file, or a stream (standard input, a FIFO, a device), to read.

    `stream` is the decompressed content of a stream, opened to see what it is; the first read takes it out.
    `encoding` is its own, where that is not the one asked for.
    """

    name: str  # for messages, safe to show
    path: Path | None  # None: standard input
    kind: Kind
    compression: Compression | None  # by its first bytes
    stream: list[Iterator[bytes]] | None = field(default=None, repr=False, compare=False)
    encoding: str | None = None

    @property
    def compressed(self) -> bool:
        return self.compression is not None


def codec_name(options: TextOptions) -> str:
    """Return Python's name of the encoding; utf-8 for utf-8-sig, since a byte order mark is dropped in any case.

    Raises ConfigError for a name that is no text encoding.
    """
    try:
        "".encode(options.encoding)  # refuses what is no text encoding, such as hex
        name = codecs.lookup(options.encoding).name
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        name = "undefined"
    if name in _NOT_FOR_FILES:
        raise ConfigError(f"unknown encoding '{escape(options.encoding)}'; try utf-8, utf-16, latin-1, cp1252, gb18030")
    return "utf-8" if name == "utf-8-sig" else name


def unreadable(name: str, error: OSError) -> GptcliError:
    """Return what to tell the user about a failed system call."""
    match error.errno:
        case errno.ELOOP:
            return ConfigError(f"{name}: symbolic link loop")
        case errno.ENOENT:
            return ConfigError(f"{name}: no such file")
        case errno.EACCES | errno.EPERM:
            return GptcliError(f"{name}: permission denied (need read)")
    return GptcliError(f"{name}: cannot be read ({error.strerror or error})")


def raw_blocks(path: Path | None, name: str) -> Generator[bytes]:
    """Yield the bytes of a file, or of standard input (None), a few at first and then PIECE_BYTES at a time.

    Never waits for a person to type.
    """
    if path is None and (sys.stdin is None or sys.stdin.closed):
        raise ConfigError("stdin is closed; name a file or pipe text in")
    try:
        with nullcontext(sys.stdin.buffer) if path is None else open(path, "rb", buffering=0) as file:
            if file.isatty():
                raise ConfigError(f"{name} is a terminal; name a file or pipe text in")
            size = min(HEAD_BYTES, PIECE_BYTES)
            while (block := file.read(size)) != b"":
                size = PIECE_BYTES
                if block is None:  # a stream in non-blocking mode is not at its end
                    raise BlockingIOError(errno.EAGAIN, "no data is ready, and it is set not to wait for it")
                yield block
    except OSError as error:
        raise unreadable(name, error) from None


def peek(blocks: Iterator[bytes], enough: Callable[[bytearray], bool]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes, as many as it takes to be enough or all, and an iterator over all blocks, those
    included."""
    head, seen = bytearray(), []
    for block in blocks:
        head += block
        seen.append(block)
        if enough(head):
            break
    return bytes(head), chain(seen, blocks)


def content_blocks(source: Source) -> Iterator[bytes]:
    """Return the decompressed blocks of a source."""
    if source.stream is not None:
        if not source.stream:
            raise GptcliError(f"{source.name}: can be read only once; save it to a file and name that")
        return source.stream.pop()
    blocks = raw_blocks(source.path, source.name)
    return blocks if source.compression is None else decompressed(blocks, source.name, source.compression, PIECE_BYTES)


def decompressed_bytes(source: Source) -> int:
    """Return the bytes of a source's content: a file's size, or what a pass over a compressed one counts.

    GptcliError for a stream, which has no size.
    """
    if source.path is None or source.stream is not None:
        raise GptcliError(f"{source.name}: the size of a stream is not known before it is read")
    if source.compressed:
        return sum(map(len, content_blocks(source)))
    try:
        return source.path.stat().st_size
    except OSError as error:
        raise unreadable(source.name, error) from None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes as they are on disk, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(escape(os.fspath(path)), error) from None
