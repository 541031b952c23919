"""A corpus encoded in N parts, by any engine on any machines; merge_parts.py joins them.

The inputs lie after each other in the order in which they were named, and a part encodes a stretch of them. Which one
follows from the sizes of the files alone, so that parts need not know of each other. A part keeps with the ids of a
piece what decides where the piece goes: which split it is of is known only when all parts are. A file that lies in two
parts is read by the later one from its beginning, which costs little beside encoding.

part.json                    what parts must agree on; the sources, with sizes, hashes and how many pieces of each
tokenizer.json
part-00000.bin ...           ids of the pieces, one after another
part-00000.pieces.bin ...    PIECE of each
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.base import fsio
from gptcli.base.errors import ConfigError
from gptcli.base.report import Report
from gptcli.config.data import DataConfig
from gptcli.data.blocks import PIECE_BYTES
from gptcli.data.corpus import Corpus, as_surveyed, find_inputs, measure, text_options, without_held_out
from gptcli.data.encode import PIECE_CHARACTERS, SHARD_TOKENS, encoded, write_shards
from gptcli.data.shards import Encoded, SplitWriter, token_dtype
from gptcli.data.text import Findings, Piece, Source
from gptcli.data.tokenizer import Tokenizer

FORMAT, VERSION = "gptcli-part", 1
PART = "part.json"
SETTINGS = ("validation_fraction", "validation_split", "field", "encoding", "errors", "separator", "on_bad_row")
PIECE = np.dtype([("raw_bytes", "<u8"), ("text_bytes", "<u4"), ("tokens", "<u4"), ("starts_document", "u1")])


@dataclass(frozen=True)
class Stretch:
    """The pieces of a source that a part encodes: those that begin at its bytes `start` .. `end`."""

    number: int  # of the source, among all
    start: int
    end: float


@dataclass(frozen=True)
class PartCorpus:
    """The text that a part encodes, a stretch of each source of a corpus; and the beginning of its part.json."""

    corpus: Corpus
    stretches: tuple[Stretch, ...]
    facts: dict[str, Any]

    def sources(self) -> list[dict[str, Any]]:
        """Return what part.json says of the sources, but for the number of pieces."""
        return [
            {
                **fact,
                "number": stretch.number,
                "path": os.path.abspath(source.path or ""),
                "kind": source.kind,
                "compression": source.compression and source.compression.name,
                "stamp": list(stamp[:2]),  # size and time, which a copy on another machine may have, too
            }
            for fact, (_, source, _), stamp, stretch in zip(
                self.corpus.facts, self.corpus.sources, self.corpus.stamps, self.stretches, strict=True
            )
        ]


def survey_part(data: DataConfig, tokenizer: Tokenizer, number: int, parts: int, report: Report) -> PartCorpus:
    """Find all inputs; measure and hash those that part `number` of `parts`, counted from 1, reads.

    ConfigError where an input is a stream, which cannot be divided.
    """
    options = text_options(data, flags=True)
    found = find_inputs(data, options, report)
    sizes = [_size_on_disk(source) for _, source in found]
    starts = list(itertools.accumulate(sizes, initial=0))
    start = starts[-1] * (number - 1) // parts
    end = starts[-1] * number // parts - start if number < parts else math.inf
    read = []
    for index, (split, source) in enumerate(found):
        stretch = _stretch(index, source, starts[index] - start, sizes[index], end)
        if stretch is not None or split == "validation":
            report.progress("read inputs", index, len(found), source.name)
            read.append((measure(split, source, options), stretch))
    report.progress("read inputs", len(found), len(found))
    kept = {id(item) for item in without_held_out([item for item, _ in read], report)}
    own = [(item, stretch) for item, stretch in read if stretch is not None and id(item) in kept]
    described = [(split, source.name, source.kind, source.compressed) for split, source in found]
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "part": number,
        "parts": parts,
        "tokenizer_sha256": tokenizer.sha256,
        "settings": {**{name: getattr(data, name) for name in SETTINGS}, "pieces": [PIECE_BYTES, PIECE_CHARACTERS]},
        "inputs_sha256": hashlib.sha256(json.dumps([described, sizes]).encode()).hexdigest(),
    }
    corpus = Corpus.of(data, options, [item for item, _ in own])
    return PartCorpus(corpus, tuple(stretch for _, stretch in own), facts)


def _size_on_disk(source: Source) -> int:
    if source.path is None or source.stream is not None:
        raise ConfigError(f"{source.name}: is a stream, which cannot be read in parts; save it to a file")
    return source.path.stat().st_size


def _stretch(index: int, source: Source, start: int, size: int, end: float) -> Stretch | None:
    """Return what of a source that begins at `start` lies in 0 .. `end`. What is compressed is not divided: it lies
    where it begins."""
    if source.compressed or source.kind == "parquet":
        return Stretch(index, 0, math.inf) if 0 <= start < end else None
    if start >= end or (start < 0 and start + size <= 0):
        return None
    return Stretch(index, max(0, -start), end - start if end < start + size else math.inf)


class PieceWriter(SplitWriter):
    """A writer that appends pieces to the shards of a part."""

    def _clear(self) -> None:
        super()._clear()
        self.pieces = bytearray()

    def add(self, piece: Encoded) -> None:
        super().add(piece)
        record = (piece.raw_bytes, piece.text_bytes, len(piece.ids), piece.starts_document)
        self.pieces += np.array([record], dtype=PIECE).tobytes()

    def flush(self) -> None:
        """Make what was appended durable: a shard and what describes its pieces."""
        if self.pieces:
            self._write_shard("pieces", np.frombuffer(self.pieces, dtype=PIECE))


def encode_part(
    part: PartCorpus, tokenizer: Tokenizer, partial: Path, *, report: Report, shard_tokens: int = SHARD_TOKENS
) -> None:
    """Encode a part into `partial`; go on from the journal that a killed run left there."""
    found = Findings()
    counts = [0] * len(part.stretches)

    def pieces(done: int) -> Iterator[tuple[str, Encoded]]:
        yield from encoded(tokenizer, _pieces(part, counts, found), done, part.corpus.total_bytes, report)

    written = write_shards(
        partial,
        part.corpus.key(part.facts, shard_tokens),
        lambda name, index: PieceWriter(partial, name, token_dtype(tokenizer.vocab_size), index),
        ["part"],
        pieces,
        shard_tokens=shard_tokens,
    )["part"]
    found.tell(report, part.corpus.options)
    fsio.write_file(partial / "tokenizer.json", tokenizer.content)
    sources = [fact | {"pieces": count} for fact, count in zip(part.sources(), counts, strict=True)]
    document = {**part.facts, "sources": sources, "left_out_rows": found.bad_rows, "shards": written.shards}
    fsio.write_file(partial / PART, json.dumps(document, indent=1) + "\n")  # ASCII: a path may be no Unicode


def _pieces(part: PartCorpus, counts: list[int], found: Findings) -> Iterator[tuple[str, Piece]]:
    """Yield the pieces of a part, and count those of each source."""
    for index, stretch in enumerate(part.stretches):
        position = 0
        told = found if stretch.end == math.inf else Findings()  # what is left out is counted by the last part only
        for piece in as_surveyed(part.corpus, index, told, end=stretch.end):
            if position >= stretch.start:
                counts[index] += 1
                yield "part", piece
            position += piece.raw_bytes


def is_part(path: Path) -> bool:
    return (path / PART).is_file()


def is_made(path: Path, part: PartCorpus) -> bool:
    """Return whether a directory is a part that was made of the same content in the same way."""
    if not is_part(path):
        return False
    known = fsio.read_json(path / PART)
    sources = [fact | {"stamp": None} for fact in part.sources()]
    there = [{**fact, "stamp": None} for fact in known["sources"]]
    for fact in there:
        del fact["pieces"]
    return sources == there and all(known[name] == value for name, value in part.facts.items())
