"""Inputs named by the user -> documents, as bounded pieces of text. Standard library only.

    inputs ─ find_sources ─> Source ─ read_pieces ─> Piece(text, starts_document, raw_bytes)
    inside read_pieces:  bytes ─ gunzip ─> blocks ─ decode ─> text ─ cut ─> parts ─> pieces

A text file is one document, a JSONL record is one document. Memory is bounded for an input of any size, and for one
line of any length: a few blocks of PIECE_BYTES, in a JSONL file a few times its longest line (MAX_LINE_BYTES at most).
"""

import codecs
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.data.blocks import (
    PIECE_BYTES,
    Source,
    TextOptions,
    codec_name,
    content_blocks,
    decompressed_bytes,
    file_sha256,
)
from gptcli.data.sources import MAX_LINE_BYTES, find_sources, markup_notes

__all__ = [
    "MAX_LINE_BYTES",
    "PIECE_BYTES",
    "Piece",
    "Source",
    "TextOptions",
    "decompressed_bytes",
    "file_sha256",
    "find_sources",
    "markup_notes",
    "read_lines",
    "read_pieces",
    "split_text",
]

# Begins with the space, for the search to run at the speed of memchr; the class holds a few numerals beside letters.
_WORD_START = re.compile(r" (?<=\S )(?=[^\W\d_])")
_JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
}


class Piece(NamedTuple):
    """A stretch of one document.

    `raw_bytes` are the decompressed bytes of the source that it took, JSON syntax and skipped lines before it included:
    exact in sum over a source, within a block of PIECE_BYTES shared out by characters. Text is empty only in the last
    piece of a source, where bytes without text are left over (blank lines, empty documents, a byte order mark); that
    piece starts no document.
    """

    text: str
    starts_document: bool
    raw_bytes: int


class _Decoder:
    """Blocks of bytes to text, newlines kept as they are; knows the line and column (from 1) of an undecodable byte."""

    def __init__(self, name: str, options: TextOptions) -> None:
        self._name = name
        self._codec_name = codec_name(options)
        self._codec = codecs.getincrementaldecoder(self._codec_name)(options.errors)
        self._drops_mark = self._codec_name == "utf-8"
        self._line, self._column = 1, 1  # of the next character

    def decode(self, block: bytes, *, final: bool = False) -> str:
        """The text of the next block. Raises DataError that places the first undecodable byte."""
        before = self._codec.getstate()
        try:
            try:
                return self._placed(self._codec.decode(block, final))
            except UnicodeDecodeError as error:
                self._codec.setstate(before)
                self._placed(self._codec.decode(error.object[len(before[0]) : error.start]))
                byte, codec = error.object[error.start], self._codec_name.upper()
        except UnicodeError:  # of UTF-16 and UTF-32: the byte order is neither marked in the file nor part of the name
            codec = self._codec_name
            raise DataError(f"{self._name}: no byte order mark; pass --encoding {codec}-le or {codec}-be") from None
        what = f"byte 0x{byte:02x} at column {self._column} is not {codec}"
        raise DataError(f"{self._name}:{self._line}: {what}; pass --encoding latin-1 or --errors replace")

    def _placed(self, text: str) -> str:
        """The text without a byte order mark; moves line and column past it."""
        if self._drops_mark and text:
            text, self._drops_mark = text.removeprefix("\ufeff"), False
        if newlines := text.count("\n"):
            self._line += newlines
            self._column = len(text) - text.rfind("\n")
        else:
            self._column += len(text)
        return text


def _decoded_blocks(source: Source, options: TextOptions) -> Iterator[tuple[str, int]]:
    """The text of each block of a source, with the bytes of the block."""
    decoder = _Decoder(source.name, replace(options, encoding=source.encoding or options.encoding))
    for block in content_blocks(source):
        yield decoder.decode(block), len(block)
    yield decoder.decode(b"", final=True), 0


# ----------------------------------------------------------------------------------------------------- text to pieces


def split_text(text: str, limit: int, *, anywhere: bool = True) -> Iterator[str]:
    """Cuts a text into pieces of at most `limit` characters whose concatenation it is; at least one, for "" too.

    A cut goes just before a single space between a non-whitespace character and a letter, where there is one in the
    first `limit` characters: there the split patterns of GPT-2, GPT-4 (cl100k), Llama 3 and Qwen 2 always begin a new
    word, and look no further ahead, so that byte-level BPE gives the pieces the ids it gives the whole. Where there is
    none (a megabyte of one word, of digits, of Chinese) the cut is hard: the ids may differ from those of the whole at
    this one border, but the text is the same. Not so with `anywhere` false: then a piece goes on to the next such
    place, however far.
    """
    start = searched = 0
    while len(text) - searched > limit:
        cut = _last_word_start(text, searched + 1, searched + limit)
        searched = cut if cut > searched else searched + limit
        if cut == searched or anywhere:
            yield text[start:searched]
            start = searched
    yield text[start:]


def _last_word_start(text: str, start: int, end: int) -> int:
    """The last index in [start, end) of a single space between a non-whitespace character and a letter, or -1."""
    width = 1 << 10
    while start < end:  # backwards in windows that grow: mostly the first one has a word, a table of digits has none
        low = max(start, end - width)
        spaces = [match.start() for match in _WORD_START.finditer(text, low, end + 1)]
        if found := [space for space in spaces if text[space + 1].isalpha()]:
            return found[-1]
        end, width = low, width * 4
    return -1


def _parts(blocks: Iterable[tuple[str, int]], cut: Callable[[str], Iterable[str]]) -> Iterator[tuple[str, int]]:
    """The text of all blocks as `cut` divides it, each part with the bytes it took, the last part "" if need be.

    What `cut` leaves as its last part is put before the next block; a line of JSONL that has grown beyond
    MAX_LINE_BYTES without an end is given out as it is, for the reader to refuse.
    """
    rest, taken_bytes, read_bytes = "", 0, 0
    for text, block_bytes in blocks:
        end = -len(rest)  # of a part, in characters from the start of this block
        *parts, rest = cut(rest + text)
        for part in parts:
            end += len(part)
            part_bytes = max(0, read_bytes + block_bytes * end // len(text) - taken_bytes)
            yield part, part_bytes
            taken_bytes += part_bytes
        read_bytes += block_bytes
        if len(rest) > PIECE_BYTES and read_bytes - taken_bytes > MAX_LINE_BYTES:
            yield rest, read_bytes - taken_bytes
            rest, taken_bytes = "", read_bytes
    yield rest, read_bytes - taken_bytes


def _split_lines(text: str) -> list[str]:
    """The lines with their newline; what follows the last newline comes last, "" if nothing."""
    *lines, rest = text.split("\n")
    return [*(line + "\n" for line in lines), rest]


def read_pieces(source: Source, options: TextOptions) -> Iterator[Piece]:
    """The pieces of a source's documents, in order. Raises DataError where its content is not what it must be."""
    blocks = _decoded_blocks(source, options)
    parts = _text_parts(blocks) if source.kind == "text" else _record_parts(blocks, source.name, options.field)
    owed_bytes = 0  # of parts without text
    for text, starts_document, part_bytes in parts:
        owed_bytes += part_bytes
        if text:
            yield Piece(text, starts_document, owed_bytes)
            owed_bytes = 0
    if owed_bytes:
        yield Piece("", False, owed_bytes)


def read_lines(source: Source, options: TextOptions) -> Iterator[str]:
    """The lines of a source with their newline, in order; DataError where one is too long to be a record."""
    for number, (line, line_bytes) in enumerate(_parts(_decoded_blocks(source, options), _split_lines), start=1):
        if line_bytes > MAX_LINE_BYTES:
            raise DataError(f"{source.name}:{number}: line is longer than {MAX_LINE_BYTES >> 20} MiB; split the record")
        if line:
            yield line


def _text_parts(blocks: Iterable[tuple[str, int]]) -> Iterator[Piece]:
    """The pieces of a text file, an empty one where a part has no text."""
    for index, (text, part_bytes) in enumerate(_parts(blocks, lambda text: split_text(text, PIECE_BYTES))):
        yield Piece(text, index == 0, part_bytes)


def _record_parts(blocks: Iterable[tuple[str, int]], name: str, field: str) -> Iterator[Piece]:
    """The pieces of JSONL records, an empty one for a blank line or an empty text."""
    for number, (line, line_bytes) in enumerate(_parts(blocks, _split_lines), start=1):
        place = f"{name}:{number}"
        if line_bytes > MAX_LINE_BYTES:
            raise DataError(f"{place}: line is longer than {MAX_LINE_BYTES >> 20} MiB; split the record")
        line = line.rstrip(" \t\r\n")  # the white space of JSON
        text = _record_text(line, place, field) if line else ""
        for index, piece in enumerate(split_text(text, PIECE_BYTES)):
            yield Piece(piece, index == 0, 0 if index else line_bytes)


def _record_text(line: str, place: str, field: str) -> str:
    """The text of one JSONL record. Raises DataError that begins with `place`."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON (column {error.pos + 1}: {error.msg})") from None
    except RecursionError:
        raise DataError(f"{place}: JSON is nested too deeply to be read") from None
    except ValueError:
        raise DataError(f"{place}: a number has more than {sys.get_int_max_str_digits()} digits") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: record is {_json_type(record)}, want an object with the field '{shown(field)}'")
    if field not in record:
        names = shown(", ".join(f"'{key}'" for key in record)) or "no fields"
        raise DataError(
            f"{place}: no field '{shown(field)}'; it has {names}; pass --field, or set data.field in a run file"
        )
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{place}: field '{shown(field)}' is {_json_type(text)}, want a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a UTF-16 pair, which is no character
        what = f"lone surrogate {shown(text[error.start])} at character {error.start + 1}"
        raise DataError(f"{place}: field '{shown(field)}' has a {what}; mend or drop the record") from None
    return text


def _json_type(value: object) -> str:
    return _JSON_TYPES.get(type(value), "an object")
