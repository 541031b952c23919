"""The parts of a corpus -> the prepared directory that one process makes of it, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.config.data import DataConfig
from gptcli.data.blocks import file_sha256
from gptcli.data.compression import COMPRESSIONS
from gptcli.data.corpus import Corpus, Divider, Surveyed, cut, no_text, nothing_to_train_on, stamp_of, text_options
from gptcli.data.encode import SHARD_TOKENS, complete, encoded, write_shards
from gptcli.data.parts import FORMAT, PART, PIECE, SETTINGS, VERSION, is_part
from gptcli.data.shards import SPLITS, Encoded, SplitWriter, token_dtype
from gptcli.data.text import Source, read_pieces
from gptcli.data.tokenizer import Tokenizer

CHUNK_PIECES = 1 << 14  # described at a time
AGREED = {
    "parts": "is one of another number of parts",
    "tokenizer_sha256": "was made with another tokenizer",
    "settings": "was made with other settings",
    "inputs_sha256": "was made of another list of inputs, or of files of other sizes",
}


class Made(NamedTuple):
    """A part that was made, and what its part.json says."""

    path: Path
    facts: dict[str, Any]

    @property
    def number(self) -> int:
        number: int = self.facts["part"]
        return number

    @property
    def name(self) -> str:
        return escape(str(self.path))


def read_parts(paths: Sequence[Path], report: Report) -> list[Made]:
    """Return parts in order, each checked against its manifest.

    DataError names each that is damaged, missing, there twice, or not made as most are.
    """
    made = []
    for index, path in enumerate(paths):
        report.progress("check parts", index, len(paths), escape(str(path)))
        if not is_part(path):
            raise DataError(f"{escape(str(path))}: is no part; make it with gptcli prepare --part")
        fsio.verify(path)
        facts = fsio.read_json(path / PART)
        if not isinstance(facts, dict) or (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
            raise DataError(f"{escape(str(path / PART))}: not {FORMAT} version {VERSION}; make the part again")
        made.append(Made(path, facts))
    report.progress("check parts", len(paths), len(paths))
    for check in (_foreign, _missing, _changed):
        if problems := list(check(made)):
            raise DataError(*problems)
    return sorted(made, key=lambda part: part.number)


def _foreign(made: Sequence[Made]) -> Iterator[str]:
    for key, what in AGREED.items():
        values = [json.dumps(part.facts[key]) for part in made]
        most = Counter(values).most_common(1)[0][0]
        like = made[values.index(most)].name
        for part, value in zip(made, values, strict=True):
            if value != most:
                yield f"{part.name}: {what} than {like}"


def _missing(made: Sequence[Made]) -> Iterator[str]:
    found: dict[int, Made] = {}
    parts = made[0].facts["parts"]
    for part in made:
        if part.number in found:
            other = found[part.number].name
            yield f"{part.name}: is part {part.number}/{parts}, and so is {other}; name one of them"
        found[part.number] = part
    for number in range(1, parts + 1):
        if number not in found:
            yield f"part {number}/{parts} is missing; make it with --part {number}/{parts}, and name it"


def _changed(made: Sequence[Made]) -> Iterator[str]:
    """Yield what two parts read and found different: a file that lies in both."""
    for one, other in pairwise(sorted(made, key=lambda part: part.number)):
        known = {source["number"]: source["sha256"] for source in one.facts["sources"]}
        for source in other.facts["sources"]:
            if known.get(source["number"], source["sha256"]) != source["sha256"]:
                yield f"{source['name']}: changed between {one.name} and {other.name}; make both again"


class Merge:
    """The parts of a corpus as one."""

    def __init__(self, made: Sequence[Made]) -> None:
        """Take the parts in order. DataError where they hold no text, or none to train on."""
        self.made = made
        self.tokenizer = Tokenizer.load(made[0].path)
        self.dtype = token_dtype(self.tokenizer.vocab_size)
        self.sources = {source["number"]: source for part in made for source in part.facts["sources"]}
        names = {
            split: [s["name"] for s in self.sources.values() if s["split"] == split] for split in (*SPLITS, "both")
        }
        settings = {name: made[0].facts["settings"][name] for name in SETTINGS}
        trained_on = (*names["train"], *names["both"])
        if not trained_on:
            raise nothing_to_train_on(names["validation"])
        if not sum(source["bytes"] for source in self.sources.values()):
            raise no_text(source["name"] for source in self.sources.values())
        self.data = DataConfig(train=trained_on, validation=tuple(names["validation"]), **settings)
        self.options = text_options(self.data, flags=True)

    def encode(self, partial: Path, *, report: Report, shard_tokens: int = SHARD_TOKENS) -> None:
        """Make in `partial` what encode_corpus makes; go on from the journal that a killed merge left there.

        DataError where an input is not as its part read it: held-out text is looked for in all inputs.
        """
        corpus = Corpus.of(self.data, self.options, [*map(_found_again, self.sources.values())])
        manifests = [fsio.sha256(part.path / fsio.MANIFEST) for part in self.made]
        splits = write_shards(
            partial,
            hashlib.sha256(json.dumps([manifests, shard_tokens]).encode()).hexdigest(),
            lambda split, index: SplitWriter(partial, split, self.dtype, index),
            SPLITS,
            lambda done: islice(self._divided(report), done, None),
            shard_tokens=shard_tokens,
        )
        left_out_rows = sum(part.facts["left_out_rows"] for part in self.made)
        complete(partial, corpus, self.tokenizer, splits, left_out_rows, report)

    def _divided(self, report: Report) -> Iterator[tuple[str, Encoded]]:
        """Yield all pieces, each with its split."""
        total_bytes = sum(source["bytes"] for source in self.sources.values())
        split_of = Divider(self.data, sum(s["bytes"] for s in self.sources.values() if s["split"] == "both"))
        done_bytes, place, last = 0, 0, -1
        sources = {number: _source(source) for number, source in self.sources.items()}
        for number, piece in self._pieces():
            place, last = (place + 1 if number == last else 0), number
            given = self.sources[number]["split"]
            split = split_of(given, sources[number], piece.starts_document, piece.raw_bytes)
            if isinstance(split, int):
                yield from self._cut(sources[number], place, split)
            else:
                yield split, piece
            done_bytes += piece.raw_bytes
            if done_bytes >> 20 != (done_bytes - piece.raw_bytes) >> 20:
                report.progress("merge", done_bytes, total_bytes, unit="B")
        report.progress("merge", total_bytes, total_bytes, unit="B")

    def _pieces(self) -> Iterator[tuple[int, Encoded]]:
        """Yield the pieces of all parts, each with the number of its source."""
        for path, facts in self.made:
            pieces = (piece for shard in facts["shards"] for piece in _pieces_of(path / shard["file"], self.dtype))
            for source in facts["sources"]:
                for piece in islice(pieces, source["pieces"]):
                    yield source["number"], piece

    def _cut(self, source: Source, place: int, train_bytes: int) -> Iterator[tuple[str, Encoded]]:
        """Yield the two sides of the border between the splits: the piece of a text file in which it lies is read and
        encoded again."""
        piece = next(islice(read_pieces(source, self.options), place, None))
        yield from encoded(self.tokenizer, cut(piece, train_bytes), 0, 0, Report())


def _pieces_of(path: Path, dtype: np.dtype[Any]) -> Iterator[Encoded]:
    """Yield the pieces of a shard."""
    with path.open("rb", buffering=1 << 20) as ids, path.with_suffix(".pieces.bin").open("rb") as described:
        while chunk := described.read(CHUNK_PIECES * PIECE.itemsize):
            for raw_bytes, text_bytes, tokens, starts_document in np.frombuffer(chunk, dtype=PIECE).tolist():
                content = np.frombuffer(ids.read(tokens * dtype.itemsize), dtype=dtype.newbyteorder("<"))
                yield Encoded(content, text_bytes, bool(starts_document), raw_bytes)


def _source(source: dict[str, Any]) -> Source:
    compression = next((known for known in COMPRESSIONS if known.name == source["compression"]), None)
    return Source(source["name"], Path(source["path"]), source["kind"], compression)


def _found_again(source: dict[str, Any]) -> Surveyed:
    """Return a file as its part surveyed it. DataError where it is not there or has changed."""
    path = Path(source["path"])
    try:
        stamp = stamp_of(path)
    except OSError:
        raise DataError(f"{source['name']}: is not at {escape(str(path))}, where its part read it") from None
    if list(stamp[:2]) != source["stamp"] and file_sha256(path) != source["sha256"]:
        raise DataError(f"{source['name']}: has changed since its part was made; make the parts again")
    fact = {name: source[name] for name in ("name", "split", "bytes", "sha256")}
    return Surveyed(_source(source), fact, stamp)
