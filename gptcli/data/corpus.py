"""A corpus: the inputs of a run file, what identifies their content, and their pieces divided into two splits."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


class Surveyed(NamedTuple):
    """A file that was looked at."""

    source: Source
    fact: dict[str, Any]  # {name, split, bytes, sha256}
    stamp: tuple[int, ...]  # which tells that it has changed since


@dataclass(frozen=True)
class Corpus:
    """Inputs that were looked at once: their sizes and hashes are known, streams were copied to files."""

    data: DataConfig
    options: TextOptions
    sources: tuple[tuple[str, Source, int], ...]  # (split or "both", source, bytes that its pieces take)
    facts: tuple[dict[str, Any], ...]  # {name, split, bytes, sha256} of every source
    stamps: tuple[tuple[int, ...], ...]  # which tell that a file has changed since

    @classmethod
    def of(cls, data: DataConfig, options: TextOptions, surveyed: Sequence[Surveyed]) -> Corpus:
        return cls(
            data,
            options,
            tuple((item.fact["split"], item.source, item.fact["bytes"]) for item in surveyed),
            tuple(item.fact for item in surveyed),
            tuple(item.stamp for item in surveyed),
        )

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
    found = find_inputs(data, options, report)
    in_streams = Findings()
    surveyed = []
    for number, (split, source) in enumerate(found):
        if source.path is None or source.stream is not None:
            source = _spool(source, spool_dir / f"stream-{number}", options, in_streams)
        report.progress("read inputs", number, len(found), source.name)
        surveyed.append(measure(split, source, options))
    report.progress("read inputs", len(found), len(found))
    in_streams.marked.clear()  # told when the copy is read
    in_streams.tell(report, options)
    surveyed = without_held_out(surveyed, report)
    if not any(item.fact["split"] in ("train", "both") for item in surveyed):
        raise nothing_to_train_on([source.name for split, source in found if split == "train"])
    corpus = Corpus.of(data, options, surveyed)
    if corpus.total_bytes == 0:
        raise no_text(fact["name"] for fact in corpus.facts)
    return corpus


def find_inputs(data: DataConfig, options: TextOptions, report: Report) -> list[tuple[str, Source]]:
    """Return the sources that the inputs of a run stand for with the split of each, "both" for one to divide."""
    found = [("train" if data.validation else "both", source) for source in find_sources(data.inputs, options, report)]
    if data.validation:
        found += [("validation", source) for source in find_sources(data.validation, options, report)]
    return found


def measure(split: str, source: Source, options: TextOptions) -> Surveyed:
    """Return a file with its size and hash."""
    assert source.path is not None
    stamp = stamp_of(source.path)
    size = decompressed_bytes(source, options)
    fact = {"name": source.name, "split": split, "bytes": size, "sha256": file_sha256(source.path)}
    return Surveyed(source, fact, stamp)


def without_held_out(surveyed: list[Surveyed], report: Report) -> list[Surveyed]:
    """Return what was surveyed without the training files that are held out as well, by their content."""
    held_out = {item.fact["sha256"] for item in surveyed if item.fact["split"] == "validation" and item.fact["bytes"]}
    both = [item.fact["split"] == "train" and item.fact["sha256"] in held_out for item in surveyed]
    if any(both):
        others = f" and {count(sum(both) - 1, 'other file')}" if sum(both) > 1 else ""
        first = surveyed[both.index(True)].source.name
        report.warning(f"{first}{others}: held out by data.validation, so left out of the training text")
    return [item for item, left_out in zip(surveyed, both, strict=True) if not left_out]


def nothing_to_train_on(names: Sequence[str]) -> DataError:
    return DataError(f"{names[0]}: all of the training text is held out; name other files in one of the two")


def no_text(names: Iterable[str]) -> DataError:
    return DataError(f"{', '.join(names)}: no text; name inputs that hold some")


def stamp_of(path: Path) -> tuple[int, ...]:
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
    split_of = Divider(corpus.data, sum(size for split, _, size in corpus.sources if split == "both"))
    for number, (given, source, _) in enumerate(corpus.sources):
        for piece in as_surveyed(corpus, number, found):
            split = split_of(given, source, piece.starts_document, piece.raw_bytes)
            if isinstance(split, int):
                yield from cut(piece, split)
            else:
                yield split, piece


class Divider:
    """A division into splits: says of which split each piece is, of all pieces in the order of the inputs."""

    def __init__(self, data: DataConfig, divided_bytes: int) -> None:
        self.data = data
        self.border = int(divided_bytes * (1 - data.validation_fraction))
        self.position = self.documents = 0
        self.current = "train"

    def __call__(self, given: str, source: Source, starts_document: bool, raw_bytes: int) -> str | int:
        """Return the split of a piece of a source whose split is `given`, or the bytes after which to cut it in two."""
        self.documents += starts_document
        if given != "both":
            return given
        train_bytes = self.border - self.position
        self.position += raw_bytes
        if self.data.validation_split == "document":
            if starts_document:
                drawn = derived_seed("validation", self.documents) < self.data.validation_fraction * 2**63
                self.current = "validation" if drawn else "train"
            return self.current
        if source.kind == "text" and self.data.separator is None:
            if 0 <= train_bytes < raw_bytes:
                return train_bytes
            return "train" if train_bytes >= raw_bytes else "validation"
        if starts_document:
            self.current = "train" if train_bytes > 0 else "validation"
        return self.current


def as_surveyed(
    corpus: Corpus, number: int, found: Findings | None = None, *, end: float = math.inf
) -> Iterator[Piece]:
    """Yield the pieces of a source that begin before the byte `end` of it; DataError where it has changed since it was
    measured and hashed."""
    _, source, size = corpus.sources[number]
    read_bytes, whole = 0, True
    for piece in read_pieces(source, corpus.options, found):
        if read_bytes >= end:
            whole = False
            break
        read_bytes += piece.raw_bytes
        if read_bytes > size:
            break
        yield piece
    assert source.path is not None
    if (whole and read_bytes != size) or stamp_of(source.path) != corpus.stamps[number]:
        raise DataError(f"{source.name}: changed while it was read; wait until it is whole, and start again")


def split_pieces(corpus: Corpus, split: str) -> Iterator[Piece]:
    """Yield the pieces of one split, without reading inputs that are all of the other."""
    given = {given for given, _, _ in corpus.sources}
    if "both" not in given:
        for number, (own, _, _) in enumerate(corpus.sources):
            if own == split:
                yield from as_surveyed(corpus, number)
    else:
        yield from (piece for own, piece in read_corpus(corpus) if own == split)


def cut(piece: Piece, train_bytes: int) -> Iterator[tuple[str, Piece]]:
    """Yield the two parts of a piece of text in which the border between the splits lies, one where that is its
    beginning; the second starts a document."""
    if train_bytes == 0:
        yield "validation", piece._replace(starts_document=True)
        return
    head = piece.text.encode()[:train_bytes].decode(errors="ignore")
    yield "train", Piece(head, piece.starts_document, train_bytes)
    yield "validation", Piece(piece.text[len(head) :], True, piece.raw_bytes - train_bytes)
