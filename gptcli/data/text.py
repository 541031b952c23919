"""Inputs named by the user -> documents, as bounded pieces of text.

    inputs ─ find_sources ─> Source ─ read_pieces ─> Piece(text, starts_document, raw_bytes)
    inside read_pieces:  bytes ─ decompressed ─> blocks ─ decode ─> text ─ cut ─> parts ─> pieces

A text file is one document, or what a separator divides it into; a record of JSONL, JSON or Parquet is one document.
Memory is bounded for an input of any size, and for one line of any length: a few blocks of PIECE_BYTES, in a file of
records a few times its longest record (MAX_LINE_BYTES at most).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.data import parquet
from gptcli.data.blocks import PIECE_BYTES, Source, TextOptions, file_sha256
from gptcli.data.blocks import decompressed_bytes as _decompressed_bytes
from gptcli.data.decode import decoded_blocks
from gptcli.data.jsonl import MAX_LINE_BYTES
from gptcli.data.records import all_bad, record_texts, refusal
from gptcli.data.sources import find_sources
from gptcli.data.split import documents, parts, split_lines, split_text

__all__ = [
    "MAX_LINE_BYTES",
    "PIECE_BYTES",
    "Findings",
    "Piece",
    "Source",
    "TextOptions",
    "decompressed_bytes",
    "file_sha256",
    "find_sources",
    "read_lines",
    "read_pieces",
    "split_text",
]

MARKS = ("<|endoftext|>", "<|end_of_text|>", "<|eot|>")  # which divide documents in the text of other programs


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


@dataclass
class Findings:
    """Notes on sources, taken while they are read and told afterwards."""

    rows: int = 0
    bad_rows: int = 0
    first_bad: str = ""
    marked: dict[str, str] = field(default_factory=dict)  # source -> the mark in its text

    def tell(self, report: Report, options: TextOptions) -> None:
        """Tell a person."""
        if self.bad_rows:
            left_out = f"{self.bad_rows:,} of {count(self.rows, 'row')} left out, which cannot be read"
            report.warning(f"{left_out}; the first: {self.first_bad}")
        if self.marked:
            (name, mark), *others = self.marked.items()
            more = f" and {count(len(others), 'other file')}" if others else ""
            divide = f"to divide documents by it, {options.setting('separator', repr(mark))}"
            report.warning(f"{name}{more}: '{mark}' is read as {len(mark)} characters; {divide}")


def decompressed_bytes(source: Source, options: TextOptions | None = None) -> int:
    """Return the bytes that the pieces of a source will take in all. GptcliError for a stream."""
    if source.kind == "parquet" and source.path is not None:
        return parquet.text_bytes(source.path, source.name, options or TextOptions())
    return _decompressed_bytes(source)


def read_pieces(source: Source, options: TextOptions, found: Findings | None = None) -> Iterator[Piece]:
    """Yield the pieces of a source's documents, in order; what is worth telling goes to `found`.

    DataError where the content is not what it must be.
    """
    found = Findings() if found is None else found
    if source.kind == "text":
        blocks = decoded_blocks(source, options)
        divided = options.separator is not None
        texts = documents(blocks, options.separator or "") if divided else _text_parts(blocks, source, found)
    else:
        texts = _record_parts(source, options, found)
    owed_bytes = 0  # of parts without text
    for text, starts_document, part_bytes in texts:
        owed_bytes += part_bytes
        if text:
            yield Piece(text, starts_document, owed_bytes)
            owed_bytes = 0
    if owed_bytes:
        yield Piece("", False, owed_bytes)


def read_lines(source: Source, options: TextOptions, split: Callable[[str], list[str]] = split_lines) -> Iterator[str]:
    """Yield the lines of a source with their newline, in order. DataError where one is too long to be a record."""
    for number, (line, line_bytes) in enumerate(parts(decoded_blocks(source, options), split), start=1):
        if line_bytes > MAX_LINE_BYTES:
            raise DataError(f"{source.name}:{number}: line is longer than {MAX_LINE_BYTES >> 20} MiB; split the record")
        if line:
            yield line


def _text_parts(blocks: Iterable[tuple[str, int]], source: Source, found: Findings) -> Iterator[tuple[str, bool, int]]:
    """Yield the parts of a text file, an empty one where a part has no text."""
    for index, (text, part_bytes) in enumerate(parts(blocks, lambda text: split_text(text, PIECE_BYTES))):
        if "<|e" in text and (mark := next((mark for mark in MARKS if mark in text), "")):
            found.marked[source.name] = mark
        yield text, index == 0, part_bytes


def _record_parts(source: Source, options: TextOptions, found: Findings) -> Iterator[tuple[str, bool, int]]:
    """Yield the parts of the texts of records, an empty one for a blank line, an empty text or a row that is left
    out."""
    texts = record_texts(source, options)
    rows = bad = 0
    for text, record_bytes in texts:
        rows += text != ""
        if isinstance(text, DataError):
            if options.on_bad_row == "error":
                raise refusal(text, rows, texts, source, options)
            bad += 1
            found.first_bad = found.first_bad or escape(text.problems[0], 400)
            text = ""
        if len(text) <= PIECE_BYTES:
            yield text, True, record_bytes
        else:
            for index, piece in enumerate(split_text(text, PIECE_BYTES)):
                yield piece, index == 0, 0 if index else record_bytes
    found.rows, found.bad_rows = found.rows + rows, found.bad_rows + bad
    if bad and bad == rows:
        raise all_bad(found.first_bad, rows, source)
