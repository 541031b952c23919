"""Inputs -> documents: the text of each with the record that it came in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from gptcli.base.errors import DataError
from gptcli.data import parquet
from gptcli.data.decode import decoded_blocks
from gptcli.data.jsonl import MAX_LINE_BYTES, WHITE_SPACE, array_elements, check_object, parse_object, text_of
from gptcli.data.text import Source, TextOptions, find_sources, read_lines, read_pieces

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


def read_documents(inputs: Sequence[str], options: TextOptions) -> Iterator[Document]:
    """Yield the documents of files, directories, globs or `-`, in order.

    A record of JSONL, of a JSON array or of Parquet is a document, and keeps its other fields. A text file is one, or
    as many as its separator makes. Raises ConfigError for an input, DataError for a line that is no record with a text.
    """
    for source in find_sources(inputs, options):
        yield from source_documents(source, options)


def source_documents(source: Source, options: TextOptions) -> Iterator[Document]:
    """Yield the documents of one source, in order; see read_documents."""
    match source.kind:
        case "jsonl":
            lines = enumerate(read_lines(source, options), 1)
            places = ((f"{source.name}:{number}", line) for number, line in lines if line.strip(WHITE_SPACE))
            return _records(places, parse_object, options)
        case "json":
            texts = (text for text, _ in decoded_blocks(source, options))
            elements = enumerate(array_elements(texts, source.name, MAX_LINE_BYTES), 1)
            values = (
                (f"{source.name}:{line}: item {number}", value)
                for number, (line, text, value) in elements
                if value is not None or text.strip() not in ("", "]", "[]")
            )
            return _records(
                values, lambda value, _: {options.field: value} if isinstance(value, str) else value, options
            )
        case "parquet" if source.path is not None:
            return _records(parquet.rows(source.path, source.name), lambda row, _: _plain(row), options)
    return _whole(source, options)


def _records(
    values: Iterable[tuple[str, Any]], read: Callable[[Any, str], Any], options: TextOptions
) -> Iterator[Document]:
    """Yield a document for each record, which keeps its other fields."""
    for place, value in values:
        try:
            record = check_object(read(value, place), place, options.field)
            text = text_of(record, options.field, place, errors=options.errors, advice="; pass --field NAME")
        except DataError:
            if options.on_bad_row == "skip":
                continue
            raise
        yield Document(place, options.field, {**record, options.field: text})


def _plain(value: Any) -> Any:
    """Return a value of a Parquet row as JSON has it: times in ISO form, numbers that JSON has not as text."""
    match value:
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
        case bytes():
            return value.hex()
        case None | bool() | int() | float() | str():
            return value
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _whole(source: Source, options: TextOptions) -> Iterator[Document]:
    """Yield the documents that a source's pieces make."""
    parts: list[str] = []
    number = length = 0
    for piece in read_pieces(source, options):
        if piece.starts_document:
            if "".join(parts).strip():
                yield _joined(source, number, parts, options)
            parts, length, number = [], 0, number + 1
        parts.append(piece.text)
        length += len(piece.text)
        if length > MAX_LINE_BYTES:
            what = f"a document of more than {MAX_LINE_BYTES >> 20} Mi characters"
            raise DataError(f"{source.name}: {what}; divide it, --separator blank or line, or write records")
    if "".join(parts).strip():
        yield _joined(source, number, parts, options)


def _joined(source: Source, number: int, parts: list[str], options: TextOptions) -> Document:
    is_one = source.kind == "text" and options.separator is None
    place = source.name if is_one else f"{source.name}:{number}"
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
