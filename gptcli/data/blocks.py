"""The bytes of an input: read in bounded blocks, decompressed, and never waited for at a terminal.

raw_blocks ─ gunzip ─> content_blocks
"""

import codecs
import errno
import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import shown

PIECE_BYTES = 1 << 20  # characters of a piece at most, and bytes read at a time

# Python's codecs for host names and source literals: no file is written in them, and they can yield lone surrogates.
_NOT_FOR_FILES = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How inputs are read: the JSONL field that holds the text, the encoding, and what becomes of undecodable bytes."""

    field: str = "text"
    encoding: str = "utf-8"
    errors: Literal["strict", "replace", "ignore"] = "strict"


@dataclass(frozen=True)
class Source:
    """One file, or a stream (standard input, a FIFO, a device), to read.

    `stream` is the decompressed content of a stream, opened to see what it is; the first read takes it out.
    `encoding` is its own, where that is not the one asked for.
    """

    name: str  # for messages, safe to show
    path: Path | None  # None: standard input
    kind: Literal["text", "jsonl"]
    compressed: bool  # gzip, by its first bytes
    stream: list[Iterator[bytes]] | None = field(default=None, repr=False, compare=False)
    encoding: str | None = None


def codec_name(options: TextOptions) -> str:
    """Python's name of the encoding; utf-8 for utf-8-sig, as a byte order mark is dropped in any case."""
    try:
        "".encode(options.encoding)  # refuses what is no text encoding, such as hex
        name = codecs.lookup(options.encoding).name
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        name = "undefined"
    if name in _NOT_FOR_FILES:
        raise ConfigError(f"unknown encoding '{shown(options.encoding)}'; try utf-8, utf-16, latin-1, cp1252, gb18030")
    return "utf-8" if name == "utf-8-sig" else name


def unreadable(name: str, error: OSError) -> GptcliError:
    """What to tell the user about a failed system call."""
    match error.errno:
        case errno.ELOOP:
            return ConfigError(f"{name}: symbolic link loop")
        case errno.ENOENT:
            return ConfigError(f"{name}: no such file")
        case errno.EACCES | errno.EPERM:
            return GptcliError(f"{name}: permission denied (need read)")
    return GptcliError(f"{name}: cannot be read ({error.strerror or error})")


def raw_blocks(path: Path | None, name: str) -> Generator[bytes]:
    """The bytes of a file, or of standard input (None), in blocks. Never waits for a person to type."""
    if path is None and (sys.stdin is None or sys.stdin.closed):
        raise ConfigError("stdin is closed; name a file or pipe text in")
    try:
        with nullcontext(sys.stdin.buffer) if path is None else open(path, "rb", buffering=0) as file:
            if file.isatty():
                raise ConfigError(f"{name} is a terminal; name a file or pipe text in")
            while (block := file.read(PIECE_BYTES)) != b"":
                if block is None:  # a stream in non-blocking mode is not at its end
                    raise BlockingIOError(errno.EAGAIN, "no data is ready, and it is set not to wait for it")
                yield block
    except OSError as error:
        raise unreadable(name, error) from None


def gunzip(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Decompresses gzip members, one after another, in blocks however well they are compressed."""
    member, total_bytes = zlib.decompressobj(wbits=31), 0
    for block in blocks:
        while block:
            if member.eof:
                block = block.lstrip(b"\0")  # padding of tape and disk blocks, as gzip allows it
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                output = member.decompress(block, PIECE_BYTES)
            except zlib.error as error:
                reason = str(error).rpartition(": ")[2]
                raise DataError(f"{name}: gzip data is corrupt ({reason}); copy or compress the file again") from None
            total_bytes += len(output)
            if output:
                yield output
            block = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise DataError(f"{name}: ends early after {total_bytes} bytes; the gzip file is cut short, copy it again")


def peek(blocks: Iterator[bytes], enough: Callable[[bytearray], bool]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, as many as it takes to be enough or all, and an iterator over all blocks, those included."""
    head, seen = bytearray(), []
    for block in blocks:
        head += block
        seen.append(block)
        if enough(head):
            break
    return bytes(head), chain(seen, blocks)


def content_blocks(source: Source) -> Iterator[bytes]:
    """The decompressed blocks of a source."""
    if source.stream is not None:
        if not source.stream:
            raise GptcliError(f"{source.name}: can be read only once; save it to a file and name that")
        return source.stream.pop()
    blocks = raw_blocks(source.path, source.name)
    return gunzip(blocks, source.name) if source.compressed else blocks


def decompressed_bytes(source: Source) -> int:
    """The bytes of a source's content: a file's size, or for gzip what a pass over it counts. A stream has no size."""
    if source.path is None or source.stream is not None:
        raise GptcliError(f"{source.name}: the size of a stream is not known before it is read")
    if source.compressed:
        return sum(map(len, content_blocks(source)))
    try:
        return source.path.stat().st_size
    except OSError as error:
        raise unreadable(source.name, error) from None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as they are on disk, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(shown(os.fspath(path)), error) from None
