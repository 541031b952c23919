"""Inputs -> documents: the text of each with the record that it came in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from gptcli.base.errors import DataError
from gptcli.data.jsonl import MAX_LINE_BYTES, WHITE_SPACE, check_object, parse_object, text_of
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

    A JSONL record is a document, and keeps its other fields. A text file is one, or as many as its separator makes.
    Raises ConfigError for an input, DataError for a line that is no record with a text.
    """
    for source in find_sources(inputs, options):
        yield from source_documents(source, options)


def source_documents(source: Source, options: TextOptions) -> Iterator[Document]:
    """Yield the documents of one source, in order; see read_documents."""
    return _records(source, options) if source.kind == "jsonl" else _whole(source, options)


def _records(source: Source, options: TextOptions) -> Iterator[Document]:
    for number, line in enumerate(read_lines(source, options), 1):
        if line.strip(WHITE_SPACE):
            place = f"{source.name}:{number}"
            try:
                record = check_object(parse_object(line, place), place, options.field)
                text = text_of(record, options.field, place, errors=options.errors, advice="; pass --field NAME")
            except DataError:
                if options.on_bad_row == "skip":
                    continue
                raise
            yield Document(place, options.field, {**record, options.field: text})


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
