"""Inputs -> documents: the text of each with the record that it came in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.data.text import MAX_LINE_BYTES, Source, TextOptions, find_sources, read_lines, read_pieces

Split = Literal["file", "paragraph", "line"]
BLOCK_CHARACTERS = 1 << 20  # of the texts of documents that are worked on at once


class Document(NamedTuple):
    """One document of a corpus."""

    place: str  # FILE:LINE, or FILE where it is the whole file; safe to show
    field: str  # that holds the text
    record: dict[str, Any]

    @property
    def text(self) -> str:
        return str(self.record[self.field])

    @property
    def id(self) -> str | int:
        """Return the record's own id, else its place."""
        given = self.record.get("id")
        return given if isinstance(given, (str, int)) else self.place

    def with_text(self, text: str, **fields: Any) -> Document:
        """Return the document with another text, and more fields in its record."""
        return self._replace(record={**self.record, self.field: text, **fields})

    def line(self) -> bytes:
        """Return the record as a line of JSONL."""
        try:
            return (json.dumps(self.record, ensure_ascii=False) + "\n").encode()
        except UnicodeEncodeError:  # half of a pair in another field than the text: passed on as it came
            return (json.dumps(self.record) + "\n").encode()


def read_documents(inputs: Sequence[str], options: TextOptions, split: Split = "file") -> Iterator[Document]:
    """Yield the documents of files, directories, globs or `-`, in order.

    A JSONL record is a document, and keeps its other fields. A text file is one, or each of its paragraphs (between
    blank lines) or lines is. Raises ConfigError for an input, DataError for a line that is no record with a text.
    """
    for source in find_sources(inputs, options):
        yield from source_documents(source, options, split)


def source_documents(source: Source, options: TextOptions, split: Split = "file") -> Iterator[Document]:
    """Yield the documents of one source, in order; see read_documents."""
    if source.kind == "jsonl":
        return _records(source, options)
    if source.kind == "text" and split != "file":
        return _stretches(source, options, split)
    return _whole(source, options)


def _records(source: Source, options: TextOptions) -> Iterator[Document]:
    for number, line in enumerate(read_lines(source, options), 1):
        if line.strip(" \t\r\n"):
            place = f"{source.name}:{number}"
            yield Document(place, options.field, _record(line, place, options.field))


def _record(line: str, place: str, field: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON (column {error.pos + 1}: {error.msg})") from None
    except RecursionError:
        raise DataError(f"{place}: JSON is nested too deeply to be read") from None
    except ValueError:
        raise DataError(f"{place}: a number has more than {sys.get_int_max_str_digits()} digits") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: not a JSON object; want one with the field '{shown(field)}'")
    text = record.get(field)
    if not isinstance(text, str):
        there = shown(", ".join(map(repr, record))) or "no fields"
        raise DataError(f"{place}: no text in the field '{shown(field)}'; it has {there}; pass --field")
    try:
        text.encode()
    except UnicodeEncodeError:
        what = "has a lone surrogate, which is not text; mend or drop the record"
        raise DataError(f"{place}: field '{shown(field)}' {what}") from None
    return record


def _stretches(source: Source, options: TextOptions, split: Split) -> Iterator[Document]:
    """Yield the lines or paragraphs of a text; a blank line is neither."""
    lines: list[str] = []
    start = number = 0
    for number, line in enumerate(read_lines(source, options), 1):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        if lines and (split == "line" or not line.strip()):
            yield _stretch(source, start, lines, options)
            lines = []
    if lines:
        yield _stretch(source, start, lines, options)


def _stretch(source: Source, start: int, lines: list[str], options: TextOptions) -> Document:
    return Document(f"{source.name}:{start}", options.field, {options.field: "".join(lines).rstrip("\n")})


def _whole(source: Source, options: TextOptions) -> Iterator[Document]:
    """Yield the documents that a source's pieces make: a text file is one."""
    parts: list[str] = []
    number = length = 0
    for piece in read_pieces(source, options):
        if piece.starts_document:
            if parts:
                yield _joined(source, number, parts, options)
            parts, length, number = [], 0, number + 1
        parts.append(piece.text)
        length += len(piece.text)
        if length > MAX_LINE_BYTES:
            what = f"a document of more than {MAX_LINE_BYTES >> 20} Mi characters"
            raise DataError(f"{source.name}: {what}; pass --split paragraph or line, or write records")
    if "".join(parts).strip():
        yield _joined(source, number, parts, options)


def _joined(source: Source, number: int, parts: list[str], options: TextOptions) -> Document:
    place = source.name if source.kind == "text" else f"{source.name}:{number}"
    return Document(place, options.field, {options.field: "".join(parts)})


def document_blocks(documents: Iterable[Document], characters: int = BLOCK_CHARACTERS) -> Iterator[list[Document]]:
    """Yield lists of documents of about so many characters together, at least one each."""
    block: list[Document] = []
    length = 0
    for document in documents:
        block.append(document)
        length += len(document.text) + 1
        if length >= characters:
            yield block
            block, length = [], 0
    if block:
        yield block
