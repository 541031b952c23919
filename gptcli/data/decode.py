"""Bytes -> text. An undecodable byte is placed, and the encodings that the text could have are named."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace

from gptcli.base.errors import DataError
from gptcli.data.blocks import Source, TextOptions, codec_name, content_blocks
from gptcli.data.encodings import advice


class Decoder:
    """Blocks of bytes to text, newlines kept as they are; knows the line and column (from 1) of an undecodable byte."""

    def __init__(self, name: str, options: TextOptions) -> None:
        self._name = name
        self._options, self._codec_name = options, codec_name(options)
        self._codec = codecs.getincrementaldecoder(self._codec_name)(options.errors)
        self._drops_mark = self._codec_name == "utf-8"
        self._line, self._column = 1, 1  # of the next character

    def decode(self, block: bytes, *, final: bool = False) -> str:
        """Return the text of the next block. DataError that places the first undecodable byte."""
        before = self._codec.getstate()
        try:
            try:
                return self._placed(self._codec.decode(block, final))
            except UnicodeDecodeError as error:
                self._codec.setstate(before)
                self._placed(self._codec.decode(error.object[len(before[0]) : error.start]))
                wrong, byte, codec = error.object[error.start :], error.object[error.start], self._codec_name.upper()
        except UnicodeError:  # of UTF-16 and UTF-32: the byte order is neither marked in the file nor part of the name
            codec = self._codec_name
            choice = " or ".join(self._options.setting("encoding", f"{codec}-{order}") for order in ("le", "be"))
            raise DataError(f"{self._name}: no byte order mark; pass {choice}") from None
        what = f"byte 0x{byte:02x} at column {self._column} is not {codec}"
        raise DataError(f"{self._name}:{self._line}: {what}; {advice(block, wrong, self._options)}")

    def _placed(self, text: str) -> str:
        """Return the text without a byte order mark; moves line and column past it."""
        if self._drops_mark and text:
            text, self._drops_mark = text.removeprefix("\ufeff"), False
        if newlines := text.count("\n"):
            self._line += newlines
            self._column = len(text) - text.rfind("\n")
        else:
            self._column += len(text)
        return text


def decoded_blocks(source: Source, options: TextOptions) -> Iterator[tuple[str, int]]:
    """Yield the text of each block of a source, with the bytes of the block."""
    decoder = Decoder(source.name, replace(options, encoding=source.encoding or options.encoding))
    for block in content_blocks(source):
        yield decoder.decode(block), len(block)
    yield decoder.decode(b"", final=True), 0
