"""Convert text to token ids and back, a document at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.data.jsonl import decode_line, parse_object
from gptcli.data.text import Findings, Piece, TextOptions, find_sources, read_pieces
from gptcli.data.tokenizer import Tokenizer


def read_inputs(inputs: Sequence[str], options: TextOptions, report: Report | None = None) -> Iterator[Piece]:
    """Yield the pieces of all inputs, in order; the report is told what is worth knowing of them."""
    report, found = report or Report(), Findings()
    for source in find_sources(inputs, options, report):
        yield from read_pieces(source, options, found)
    found.tell(report, options)


def documents(
    inputs: Sequence[str], options: TextOptions, report: Report | None = None, *, lines: bool = False
) -> Iterator[Iterator[str]]:
    """Yield each document as its pieces of text, or each line without its newline. Take them in order."""
    pieces = read_inputs(inputs, options, report)
    if lines:
        yield from ([line] for line in _lines(pieces))  # type: ignore[misc]
    else:
        yield from documents_of(pieces)


def documents_of(pieces: Iterator[Piece]) -> Iterator[Iterator[str]]:
    """Group pieces into documents, each an iterator of its pieces of text. Take them in order."""
    following: list[str] = []

    def rest_of_document() -> Iterator[str]:
        yield following.pop()
        for piece in pieces:
            if piece.starts_document:
                following.append(piece.text)
                return
            yield piece.text

    first = next(pieces, None)
    if first is not None:
        following.append(first.text)
    while following:
        document = rest_of_document()
        yield document
        for _ in document:  # what the caller left
            pass


def _lines(pieces: Iterable[Piece]) -> Iterator[str]:
    rest = ""
    for piece in pieces:
        *lines, rest = (rest + piece.text).split("\n")
        yield from lines
    if rest:
        yield rest


def encode(tokenizer: Tokenizer, document: Iterable[str]) -> Iterator[int]:
    """Yield ids of a document."""
    for text in document:
        yield from tokenizer.encode(text)


def read_ids(lines: Iterable[bytes], *, as_json: bool) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Read (other fields, ids) of each line: `464 1263`, or {"ids": [464, 1263]}. DataError names the line."""
    for number, line in enumerate(lines, 1):
        place = f"stdin:{number}"
        record = parse_object(decode_line(line, place), place) if as_json else {}
        if as_json and "ids" not in record:
            raise DataError(f"{place}: not a line of ids (no field 'ids')")
        ids = record.pop("ids") if as_json else _numbers(line, place)
        if not isinstance(ids, list) or not all(type(index) is int for index in ids):
            raise DataError(f"{place}: not a line of ids (ids must be a list of whole numbers)")
        yield record, ids


def _numbers(line: bytes, place: str) -> list[int]:
    words = line.split()
    if wrong := next((word for word in words if not word.lstrip(b"-").isdigit()), None):
        what = escape(f"{wrong.decode(errors='replace')!r} is no whole number")
        raise DataError(f"{place}: not a line of ids ({what})")
    try:
        return [int(word) for word in words]
    except ValueError:  # more digits than Python reads
        raise DataError(f"{place}: not a line of ids (a number has too many digits)") from None


def decode(tokenizer: Tokenizer, ids: list[int], line: int) -> bytes:
    """Return the bytes of ids; DataError for one outside of the vocabulary."""
    for index in ids:
        if not 0 <= index < tokenizer.vocab_size:
            raise DataError(f"stdin:{line}: id {index} is outside of the vocabulary of {tokenizer.vocab_size}")
    return tokenizer.decode_bytes(ids)


@dataclass(frozen=True)
class Count:
    documents: int
    bytes: int
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        per_token = self.bytes / self.tokens if self.tokens else None
        return {"documents": self.documents, "bytes": self.bytes, "tokens": self.tokens, "bytes_per_token": per_token}

    def lines(self) -> list[tuple[str, str]]:
        return [(name.replace("_", " "), "-" if v is None else f"{v:,.6g}" if isinstance(v, float) else f"{v}")
                for name, v in self.as_dict().items()]  # fmt: skip


def count(tokenizer: Tokenizer, inputs: Sequence[str], options: TextOptions, report: Report | None = None) -> Count:
    """Count the documents, bytes and tokens of the inputs, in constant memory."""
    found = text_bytes = tokens = 0
    for piece in read_inputs(inputs, options, report):
        found += piece.starts_document
        text_bytes += len(piece.text.encode())
        tokens += len(tokenizer.encode(piece.text))
    return Count(found, text_bytes, tokens)
