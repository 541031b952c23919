"""Text <-> token ids, a document at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.data.text import Piece, TextOptions, find_sources, read_pieces
from gptcli.data.tokenizer import Tokenizer


def read_inputs(inputs: Sequence[str], options: TextOptions) -> Iterator[Piece]:
    """The pieces of all inputs, in order."""
    for source in find_sources(inputs, options):
        yield from read_pieces(source, options)


def documents(inputs: Sequence[str], options: TextOptions, *, lines: bool = False) -> Iterator[Iterator[str]]:
    """Each document as its pieces of text, or each line of text without its newline. Take them in order."""
    pieces = read_inputs(inputs, options)
    if lines:
        yield from ([line] for line in _lines(pieces))  # type: ignore[misc]
    else:
        yield from documents_of(pieces)


def documents_of(pieces: Iterator[Piece]) -> Iterator[Iterator[str]]:
    """Pieces as documents, each as its pieces of text. Take them in order."""
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
    """Ids of a document."""
    for text in document:
        yield from tokenizer.encode(text)


def read_ids(lines: Iterable[bytes], *, as_json: bool) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """(other fields, ids) of each line: `464 1263`, or {"ids": [464, 1263]}. DataError names the line."""
    for number, line in enumerate(lines, 1):
        record: dict[str, Any] = {}
        try:
            if as_json:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError('want {"ids": [...]}')
                ids = record.pop("ids")
            else:
                words = line.split()
                if wrong := next((word for word in words if not word.lstrip(b"-").isdigit()), None):
                    raise ValueError(f"{wrong.decode(errors='replace')!r} is no whole number")
                ids = [int(word) for word in words]
            if not isinstance(ids, list) or not all(type(index) is int for index in ids):
                raise ValueError("ids must be a list of whole numbers")
        except (ValueError, KeyError, RecursionError) as error:
            what = "no field 'ids'" if isinstance(error, KeyError) else str(error)
            raise DataError(f"stdin:{number}: not a line of ids ({shown(what)})") from None
        yield record, ids


def decode(tokenizer: Tokenizer, ids: list[int], line: int) -> bytes:
    """The bytes of ids; DataError for one outside of the vocabulary."""
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


def count(tokenizer: Tokenizer, inputs: Sequence[str], options: TextOptions) -> Count:
    """Documents, bytes and tokens of the inputs, in constant memory."""
    found = text_bytes = tokens = 0
    for piece in read_inputs(inputs, options):
        found += piece.starts_document
        text_bytes += len(piece.text.encode())
        tokens += len(tokenizer.encode(piece.text))
    return Count(found, text_bytes, tokens)
