"""Compressed inputs: told by their first bytes, decompressed in blocks of bounded size."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from gptcli.base.errors import ConfigError, DataError

XZ_MEMORY_BYTES = 1 << 30  # a dictionary that a file may ask for; that of xz -9 has 64 MiB
ZSTD_WINDOW_BYTES = 1 << 31  # as zstd --long=31 writes it
ZSTD_INPUT_BYTES = 1 << 10  # at once: a block of 128 KiB may take four bytes, so this bounds what comes out at 32 MiB


class Decompressor(Protocol):
    """One compressed member, with the methods of bz2.BZ2Decompressor and lzma.LZMADecompressor."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Compression(NamedTuple):
    """A format of compression."""

    name: str
    magic: bytes  # a regular expression of the first bytes
    suffix: str
    new: Callable[[], Decompressor]

    def __repr__(self) -> str:
        return self.name


class _Gzip:
    """zlib's decompressor, which leaves it to the caller to keep what was not consumed."""

    def __init__(self) -> None:
        self._member, self._rest = zlib.decompressobj(wbits=31), b""

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def needs_input(self) -> bool:
        return not self._rest

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._member.decompress(self._rest + data, max_length)
        self._rest = self._member.unconsumed_tail
        return output


class _Zstd:
    """zstandard's decompressor, which gives out all that its input holds, fed a little at a time."""

    def __init__(self) -> None:
        zstandard = extra("zstandard", "zstd data")
        self._frame: Any = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()
        self._rest = memoryview(b"")
        self._error: type[Exception] = zstandard.ZstdError

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def needs_input(self) -> bool:
        return not self._rest

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data) + bytes(self._rest)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output, rest = bytearray(), memoryview(bytes(self._rest) + data if self._rest else data)
        try:
            while rest and not self._frame.eof and len(output) < max_length:
                output += self._frame.decompress(rest[:ZSTD_INPUT_BYTES])
                rest = rest[ZSTD_INPUT_BYTES:]
        except self._error as error:
            raise ValueError(str(error).rpartition(": ")[2]) from None
        self._rest = rest
        return bytes(output)


COMPRESSIONS = (
    Compression("gzip", rb"\x1f\x8b", ".gz", _Gzip),
    Compression("xz", rb"\xfd7zXZ\x00", ".xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES)),
    Compression("bzip2", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", ".bz2", bz2.BZ2Decompressor),
    Compression("zstd", rb"\x28\xb5\x2f\xfd", ".zst", _Zstd),
)
MAGIC_BYTES = 10  # that tell each of them
COMPRESSED_SUFFIXES = tuple(compression.suffix for compression in COMPRESSIONS)


def compression_of(head: bytes) -> Compression | None:
    """Return the format whose first bytes these are."""
    return next((found for found in COMPRESSIONS if re.match(found.magic, head)), None)


def bare_name(name: str) -> str:
    """Return the name of a file in lower case, without the suffix of a compression."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), name)


def extra(module: str, what: str) -> Any:
    """Import a library of the extra `corpus`. ConfigError where it is not installed, naming what needs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(f"{what} needs {package}; pip install 'gptcli[corpus]' or {package}") from None


def decompressed(blocks: Iterable[bytes], name: str, compression: Compression, block_bytes: int) -> Iterator[bytes]:
    """Yield what the members of a compressed stream hold, one after another, however well they are compressed.

    DataError where it is corrupt or ends early; zeros after a member are padding, as gzip and xz allow it.
    """
    member, total_bytes = compression.new(), 0
    for block in blocks:
        while True:
            if member.eof:
                block = block.lstrip(b"\0")
                if not block:
                    break
                member = compression.new()
            try:
                output = member.decompress(block, block_bytes)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                reason = str(error).rpartition(": ")[2]
                raise DataError(
                    f"{name}: {compression.name} data is corrupt ({reason}); copy or compress the file again"
                ) from None
            total_bytes += len(output)
            if output:
                yield output
            block = b""
            if member.eof:
                block = member.unused_data
            elif member.needs_input:
                break
    if not member.eof:
        raise DataError(
            f"{name}: ends early after {total_bytes} bytes; the {compression.name} file is cut short, copy it again"
        )
