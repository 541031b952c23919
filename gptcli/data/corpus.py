"""A corpus: the inputs of a run file, what identifies their content, and their pieces divided into two splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.config.data import DataConfig
from gptcli.data.batches import derived_seed
from gptcli.data.text import (
    Piece,
    Source,
    TextOptions,
    decompressed_bytes,
    file_sha256,
    find_sources,
    markup_notes,
    read_pieces,
)


@dataclass(frozen=True)
class Corpus:
    """Inputs that were looked at once: their sizes and hashes are known, streams were copied to files."""

    data: DataConfig
    sources: tuple[tuple[str, Source, int], ...]  # (split or "both", source, decompressed bytes)
    facts: tuple[dict[str, Any], ...]  # {name, split, bytes, sha256} of every source

    @property
    def total_bytes(self) -> int:
        return sum(size for _, _, size in self.sources)

    def key(self, *others: Any) -> str:
        """A name for everything that is made of this content in this way: a hash."""
        content = [
            (fact["split"], source.kind, fact["sha256"])
            for fact, (_, source, _) in zip(self.facts, self.sources, strict=True)
        ]
        data = self.data
        reading = (data.validation_fraction, data.validation_split, data.field, data.encoding, data.errors)
        return hashlib.sha256(json.dumps([content, reading, others]).encode()).hexdigest()[:24]


def text_options(data: DataConfig) -> TextOptions:
    return TextOptions(field=data.field, encoding=data.encoding, errors=data.errors)


def survey(data: DataConfig, spool_dir: Path, report: Report) -> Corpus:
    """Find, measure and hash the inputs. Standard input and other streams are copied into `spool_dir` first."""
    options = text_options(data)
    found = [("train" if data.validation else "both", source) for source in find_sources(data.train, options)]
    if data.validation:
        found += [("validation", source) for source in find_sources(data.validation, options)]
    for line in markup_notes([source for _, source in found]):
        report.message(line)
    sources: list[tuple[str, Source, int]] = []
    facts: list[dict[str, Any]] = []
    for number, (split, source) in enumerate(found):
        if source.path is None or source.stream is not None:
            source = _spool(source, spool_dir / f"stream-{number}", options)
        assert source.path is not None
        report.progress("read inputs", number, len(found), source.name)
        size = decompressed_bytes(source)
        sources.append((split, source, size))
        facts.append({"name": source.name, "split": split, "bytes": size, "sha256": file_sha256(source.path)})
    report.progress("read inputs", len(found), len(found))
    corpus = Corpus(data, tuple(sources), tuple(facts))
    if corpus.total_bytes == 0:
        raise DataError(f"{', '.join(fact['name'] for fact in facts)}: no text; name inputs that hold some")
    return corpus


def _spool(source: Source, path: Path, options: TextOptions) -> Source:
    """A stream as a file of UTF-8 text or JSONL, so that it can be read twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        pieces = read_pieces(source, options)
        file.writelines((piece.text for piece in pieces) if source.kind == "text" else _records(pieces, options.field))
    return Source(source.name, path, source.kind, compressed=False, encoding="utf-8")


def _records(pieces: Iterable[Piece], field: str) -> Iterator[str]:
    """Documents as lines of JSONL, in parts: one may be long."""
    begin, end = json.dumps({field: ""}, ensure_ascii=False).removesuffix('"}'), '"}\n'
    following = ""
    for piece in pieces:
        if piece.starts_document:
            yield following + begin
            following = end
        yield json.dumps(piece.text, ensure_ascii=False)[1:-1]
    yield following


def read_corpus(corpus: Corpus) -> Iterator[tuple[str, Piece]]:
    """(split, piece) in the order of the inputs.

    `tail` holds out the last `validation_fraction` of the bytes, cut inside of a text file to the byte (moved to a
    whole character) and between the records of a JSONL file; `document` draws documents by a hash of their number.
    """
    data, options = corpus.data, text_options(corpus.data)
    divided_bytes = sum(size for split, _, size in corpus.sources if split == "both")
    border = int(divided_bytes * (1 - data.validation_fraction))
    position = 0
    documents = 0
    current = "train"
    for given_split, source, _ in corpus.sources:
        for piece in read_pieces(source, options):
            documents += piece.starts_document
            if given_split != "both":
                yield given_split, piece
                continue
            if data.validation_split == "document":
                if piece.starts_document:
                    drawn = derived_seed("validation", documents) < data.validation_fraction * 2**63
                    current = "validation" if drawn else "train"
                yield current, piece
            elif source.kind == "text":
                yield from _cut(piece, border - position)
            else:
                if piece.starts_document:
                    current = "train" if position < border else "validation"
                yield current, piece
            position += piece.raw_bytes


def _cut(piece: Piece, train_bytes: int) -> Iterator[tuple[str, Piece]]:
    """A piece of text, or its two parts where the border between the splits lies in it."""
    if train_bytes >= piece.raw_bytes:
        yield "train", piece
        return
    if train_bytes <= 0:
        # The first piece after a border at its beginning starts a document of the validation split.
        yield "validation", piece._replace(starts_document=piece.starts_document or train_bytes == 0)
        return
    head = piece.text.encode()[:train_bytes].decode(errors="ignore")
    yield "train", Piece(head, piece.starts_document, train_bytes)
    yield "validation", Piece(piece.text[len(head) :], True, piece.raw_bytes - train_bytes)
