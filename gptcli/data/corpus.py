"""A corpus: the inputs of a run file, what identifies their content, and their pieces divided into two splits."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.data import DataConfig
from gptcli.data.batches import derived_seed
from gptcli.data.blocks import Kind
from gptcli.data.text import (
    Findings,
    Piece,
    Source,
    TextOptions,
    decompressed_bytes,
    file_sha256,
    find_sources,
    read_pieces,
)


@dataclass(frozen=True)
class Corpus:
    """Inputs that were looked at once: their sizes and hashes are known, streams were copied to files."""

    data: DataConfig
    options: TextOptions
    sources: tuple[tuple[str, Source, int], ...]  # (split or "both", source, bytes that its pieces take)
    facts: tuple[dict[str, Any], ...]  # {name, split, bytes, sha256} of every source
    stamps: tuple[tuple[int, ...], ...]  # which tell that a file has changed since

    @property
    def total_bytes(self) -> int:
        return sum(size for _, _, size in self.sources)

    def key(self, *others: Any) -> str:
        """Return a name for everything that is made of this content in this way: a hash."""
        content = [
            (fact["split"], source.kind, fact["sha256"])
            for fact, (_, source, _) in zip(self.facts, self.sources, strict=True)
        ]
        data = self.data
        reading: list[Any] = [data.validation_fraction, data.validation_split, data.field, data.encoding, data.errors]
        if (data.separator, data.on_bad_row) != (None, "error"):  # left out, the key is that of earlier versions
            reading += [data.separator, data.on_bad_row]
        return hashlib.sha256(json.dumps([content, reading, others]).encode()).hexdigest()[:24]


def text_options(data: DataConfig, *, flags: bool = False) -> TextOptions:
    """Return how the text of a run is read. `flags`: it was asked for by options of the command line."""
    return TextOptions(
        field=data.field,
        encoding=data.encoding,
        errors=data.errors,
        separator=data.separator,
        on_bad_row=data.on_bad_row,
        flags=flags,
    )


def survey(data: DataConfig, spool_dir: Path, report: Report, *, flags: bool = False) -> Corpus:
    """Find, measure and hash the inputs. Standard input and other streams are copied into `spool_dir` first.

    A training file that is held out as well, by its content, is left out of the training text, and the report is told.
    """
    options = text_options(data, flags=flags)
    found = [("train" if data.validation else "both", source) for source in find_sources(data.inputs, options, report)]
    if data.validation:
        found += [("validation", source) for source in find_sources(data.validation, options, report)]
    in_streams = Findings()
    surveyed: list[tuple[tuple[str, Source, int], dict[str, Any], tuple[int, ...]]] = []
    for number, (split, source) in enumerate(found):
        if source.path is None or source.stream is not None:
            source = _spool(source, spool_dir / f"stream-{number}", options, in_streams)
        assert source.path is not None
        report.progress("read inputs", number, len(found), source.name)
        stamp = _stamp(source.path)
        size = decompressed_bytes(source, options)
        fact = {"name": source.name, "split": split, "bytes": size, "sha256": file_sha256(source.path)}
        surveyed.append(((split, source, size), fact, stamp))
    report.progress("read inputs", len(found), len(found))
    in_streams.marked.clear()  # told when the copy is read
    in_streams.tell(report, options)
    held_out = {fact["sha256"] for _, fact, _ in surveyed if fact["split"] == "validation" and fact["bytes"]}
    both = [fact["name"] for _, fact, _ in surveyed if fact["split"] == "train" and fact["sha256"] in held_out]
    if both:
        others = f" and {count(len(both) - 1, 'other file')}" if len(both) > 1 else ""
        report.warning(f"{both[0]}{others}: held out by data.validation, so left out of the training text")
        surveyed = [item for item in surveyed if not (item[1]["split"] == "train" and item[1]["sha256"] in held_out)]
        if not any(fact["split"] == "train" for _, fact, _ in surveyed):
            raise DataError(f"{both[0]}: all of the training text is held out; name other files in one of the two")
    corpus = Corpus(data, options, *(tuple(parts) for parts in zip(*surveyed, strict=True)))
    if corpus.total_bytes == 0:
        raise DataError(f"{', '.join(fact['name'] for fact in corpus.facts)}: no text; name inputs that hold some")
    return corpus


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def _spool(source: Source, path: Path, options: TextOptions, found: Findings) -> Source:
    """Return a stream as a file of UTF-8 text, or of JSONL where it holds documents, so that it can be read twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind: Kind = "text" if source.kind == "text" and options.separator is None else "jsonl"
    with path.open("w", encoding="utf-8", newline="") as file:
        pieces = read_pieces(source, options, found)
        file.writelines((piece.text for piece in pieces) if kind == "text" else _records(pieces, options.field))
    return Source(source.name, path, kind, None, encoding="utf-8")


def _records(pieces: Iterable[Piece], field: str) -> Iterator[str]:
    """Yield documents as lines of JSONL, a long one in parts."""
    begin, end = json.dumps({field: ""}, ensure_ascii=False).removesuffix('"}'), '"}\n'
    following = ""
    for piece in pieces:
        if piece.starts_document:
            yield following + begin
            following = end
        yield json.dumps(piece.text, ensure_ascii=False)[1:-1]
    yield following


def read_corpus(corpus: Corpus, found: Findings | None = None) -> Iterator[tuple[str, Piece]]:
    """Yield (split, piece) in the order of the inputs; what is worth telling goes to `found`.

    `tail` holds out the last `validation_fraction` of the bytes, cut inside of a text file to the byte (moved to a
    whole character) and between documents where there are several in a file; `document` draws documents by a hash of
    their number. DataError where a file is not as it was surveyed.
    """
    data = corpus.data
    divided_bytes = sum(size for split, _, size in corpus.sources if split == "both")
    border = int(divided_bytes * (1 - data.validation_fraction))
    position = 0
    documents = 0
    current = "train"
    for given_split, source, size in corpus.sources:
        for piece in _as_surveyed(corpus, source, size, found):
            documents += piece.starts_document
            if given_split != "both":
                yield given_split, piece
                continue
            if data.validation_split == "document":
                if piece.starts_document:
                    drawn = derived_seed("validation", documents) < data.validation_fraction * 2**63
                    current = "validation" if drawn else "train"
                yield current, piece
            elif source.kind == "text" and data.separator is None:
                yield from _cut(piece, border - position)
            else:
                if piece.starts_document:
                    current = "train" if position < border else "validation"
                yield current, piece
            position += piece.raw_bytes


def _as_surveyed(corpus: Corpus, source: Source, size: int, found: Findings | None) -> Iterator[Piece]:
    """Yield the pieces of a source; DataError where it has changed since it was measured and hashed."""
    read_bytes = 0
    for piece in read_pieces(source, corpus.options, found):
        read_bytes += piece.raw_bytes
        if read_bytes > size:
            break
        yield piece
    number = next(number for number, (_, other, _) in enumerate(corpus.sources) if other is source)
    assert source.path is not None
    if read_bytes != size or _stamp(source.path) != corpus.stamps[number]:
        raise DataError(f"{source.name}: changed while it was read; wait until it is whole, and start again")


def split_pieces(corpus: Corpus, split: str) -> Iterator[Piece]:
    """Yield the pieces of one split, without reading inputs that are all of the other."""
    given = {given for given, _, _ in corpus.sources}
    if "both" not in given:
        for own, source, size in corpus.sources:
            if own == split:
                yield from _as_surveyed(corpus, source, size, None)
    else:
        yield from (piece for own, piece in read_corpus(corpus) if own == split)


def _cut(piece: Piece, train_bytes: int) -> Iterator[tuple[str, Piece]]:
    """Yield a piece of text, or its two parts where the border between the splits lies in it."""
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
