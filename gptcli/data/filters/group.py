"""Sketches of all shards -> a drop list for each: which documents repeat others, and which lines and passages do.

One algorithm, whatever the shards, the passes and the machine: the same documents in the same order give the same
drop lists. A document is dropped only for one that stays and that it was itself compared with, so that a chain of
likenesses never makes one cluster of what has nothing in common.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.data.filters.near import CHUNK, RECORD_BYTES, Pairs, Shards, exact_pairs, near_pairs, signature_similarity
from gptcli.data.filters.passages import candidate_pairs, repeated_passages
from gptcli.data.filters.sketch import Sketch

FORMAT = "gptcli drop list 1"
HELD_WORDS = 1 << 22  # past which the maps of words are opened anew, for their pages to leave memory


@dataclass(frozen=True)
class GroupOptions:
    """The rules of what counts as a repetition and which copy stays, and the memory that the search may take."""

    similarity: float = 0.7  # of Jaccard, of sets of 5-word shingles
    keep: Literal["first", "longest"] = "first"
    lines: int | None = None  # a line in more documents than this stays in the first one alone
    memory_bytes: int = 1 << 30
    most_dropped: float = 0.5  # share of the documents


class Dropped(NamedTuple):
    """Documents that repeat others, in order of their numbers."""

    documents: NDArray[np.int64]
    kept: NDArray[np.int64]  # in whose favour
    similarity: NDArray[np.float64]
    exact: NDArray[np.bool_]


class Cut(NamedTuple):
    """A line or a passage of a document that another one has."""

    document: int
    reason: Literal["line", "passage"]
    start: int  # the line, or the first word
    end: int  # the word after the last
    kept: int


@dataclass(frozen=True)
class Grouped:
    """The findings, counted in documents."""

    documents: int
    exact: int
    near: int
    largest: int  # documents dropped for one that stays
    lines: int
    passages: int

    def facts(self) -> list[tuple[str, str]]:
        """Return what was found, for a person."""
        dropped = self.exact + self.near
        share = dropped / max(1, self.documents)
        return [
            ("documents", f"{self.documents:,}"),
            ("dropped", f"{dropped:,} ({share:.2%}): {self.exact:,} exact, {self.near:,} near duplicates"),
            ("most for one", f"{self.largest:,}"),
            ("cut", f"{count(self.lines, 'line')}, {count(self.passages, 'passage')}"),
        ]


def group(
    sketches: Sequence[Sketch], output: Path, options: GroupOptions, report: Report, *, against: Sequence[Sketch] = ()
) -> Grouped:
    """Write a directory with a drop list for each sketch, named as it, and return what was found.

    Documents of `against` come before all others and stay. Raises DataError for sketches that cannot be compared or
    where more than `most_dropped` of the documents would go, ConfigError for two of one name.
    """
    _check(sketches, against)
    shards = Shards([*against, *sketches])
    first = sum(sketch.count for sketch in against)
    kind = shards.sketches[0].options
    dropped = _dropped(shards, first, kind.documents, options, report)
    _check_share(len(dropped.documents), shards, first, options)
    cuts: list[Cut] = []
    if kind.lines and options.lines is not None:
        cuts += _repeated_lines(shards, first, dropped, options, report)
    if kind.passages:
        cuts += _passages(shards, first, dropped, kind.passages, options, report)
    _, favoured = np.unique(dropped.kept, return_counts=True)
    exact = int(dropped.exact.sum())
    found = Grouped(
        shards.count - first,
        exact,
        len(dropped.documents) - exact,
        int(favoured.max(initial=0)),
        sum(cut.reason == "line" for cut in cuts),
        sum(cut.reason == "passage" for cut in cuts),
    )
    _write(shards, len(against), output, dropped, sorted(cuts), found)
    return found


def _check(sketches: Sequence[Sketch], against: Sequence[Sketch]) -> None:
    names = [sketch.name for sketch in sketches]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f"{escape(min(twice))}: two sketches have this name, and so would their drop lists; rename one"
        )
    for sketch in [*sketches, *against]:
        if sketch.options != [*sketches, *against][0].options:
            raise DataError(f"{escape(str(sketch.path))}: signed with other options than the first; sign them alike")


def _check_share(dropped: int, shards: Shards, first: int, options: GroupOptions) -> None:
    share = dropped / max(1, shards.count - first)
    if share > options.most_dropped:
        what = f"{share:.1%} of {count(shards.count - first, 'document')} would be dropped"
        raise DataError(f"{what}, more than --most-dropped {options.most_dropped:g}; look at them, or allow it")


def _dropped(shards: Shards, first: int, kind: str, options: GroupOptions, report: Report) -> Dropped:
    """Return the documents that go: in order of preference each that is like one that stays."""
    pairs = np.empty((0, 2), np.int64)
    if kind != "off":
        pairs = exact_pairs(shards, options.memory_bytes, report)
    if kind == "near":
        pairs = np.concatenate((pairs, near_pairs(shards, options.similarity, options.memory_bytes, report)))
        pairs = np.unique(pairs, axis=0)
    pairs = pairs[pairs[:, 0] >= first]
    similarity = np.ones(len(pairs)) if kind == "exact" else _by_parts(shards, pairs)
    kept = _chosen(shards, pairs, similarity, _ranks(shards, pairs, first, options.keep), first, options.similarity)
    documents = np.array(sorted(kept), np.int64)
    favoured = np.array([kept[document][0] for document in documents.tolist()], np.int64)
    exact = np.array([], bool)
    if len(documents):
        exact = shards.rows("texts", documents) == shards.rows("texts", favoured)
    shares = np.array([kept[document][1] for document in documents.tolist()])
    return Dropped(documents, favoured, np.where(exact, 1.0, shares) if len(exact) else shares, exact)


def _by_parts(shards: Shards, pairs: Pairs) -> NDArray[np.float64]:
    parts = [signature_similarity(shards, pairs[start : start + CHUNK]) for start in range(0, len(pairs), CHUNK)]
    return np.concatenate([np.empty(0), *parts])


def _ranks(shards: Shards, pairs: Pairs, first: int, keep: str) -> dict[int, tuple[int, int]]:
    """Return what the documents of pairs are sorted by: those of `against` first, then as `keep` prefers them."""
    nodes = np.unique(pairs)
    lengths = (
        shards.rows("lengths", nodes).astype(np.int64) if keep == "longest" and len(nodes) else np.zeros(len(nodes))
    )
    return {
        node: ((-1 << 62) if node < first else -int(length), node)
        for node, length in zip(nodes.tolist(), lengths.tolist(), strict=True)
    }


def _chosen(
    shards: Shards,
    pairs: Pairs,
    similarity: NDArray[np.float64],
    ranks: dict[int, tuple[int, int]],
    first: int,
    wanted: float,
) -> dict[int, tuple[int, float]]:
    """Return {document that goes: (document that stays, similarity)}."""
    neighbours: dict[int, list[tuple[float, int]]] = {}
    for (one, other), share in zip(pairs.tolist(), similarity.tolist(), strict=True):
        later, earlier = (one, other) if ranks[one] > ranks[other] else (other, one)
        neighbours.setdefault(later, []).append((share, earlier))
    kept: dict[int, tuple[int, float]] = {}
    for document in sorted(neighbours, key=ranks.__getitem__):
        if document < first:
            continue
        near = [(-share, ranks[other], other) for share, other in neighbours[document] if other not in kept]
        if near:
            share, _, other = min(near)
            kept[document] = other, -share
            continue
        # All that it is like have gone: it goes where it is like one that they went for.
        others = sorted({kept[other][0] for _, other in neighbours[document]}, key=lambda other: ranks[other])
        shares = _similarity_to(shards, document, others)
        best = int(shares.argmax())
        if shares[best] >= wanted:
            kept[document] = others[best], float(shares[best])
    return kept


def _similarity_to(shards: Shards, document: int, others: list[int]) -> NDArray[np.float64]:
    """Return the similarity of a document to others; in sketches of exact texts it is 0 or 1."""
    pairs = np.array([(document, other) for other in others], np.int64)
    if shards.sketches[0].options.documents == "near":
        return signature_similarity(shards, pairs)
    return (shards.rows("texts", pairs[:, 0]) == shards.rows("texts", pairs[:, 1])).astype(np.float64)


def _repeated_lines(
    shards: Shards, first: int, dropped: Dropped, options: GroupOptions, report: Report
) -> Iterator[Cut]:
    """Yield the lines that are in more documents than they may, in each document but the first."""
    total = sum(len(sketch.array("lines")) for sketch in shards.sketches)
    passes = max(1, -(-total * RECORD_BYTES // options.memory_bytes))
    assert options.lines is not None
    for number in range(passes):
        report.progress("repeated lines", number, passes)
        parts = []
        for base, sketch in zip(shards.bases, shards.sketches, strict=False):
            for _, lines in sketch.chunks("lines", CHUNK):
                documents = lines["document"].astype(np.int64) + base
                mine = (lines["hash"] % np.uint64(passes) == number) & ~np.isin(documents, dropped.documents)
                parts.append((lines["hash"][mine], documents[mine], lines["line"][mine].astype(np.int64)))
        hashes, documents, places = (np.concatenate(columns) for columns in zip(*parts, strict=True)) if parts else (
            np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))  # fmt: skip
        order = np.lexsort((places, documents, hashes))
        hashes, documents, places = hashes[order], documents[order], places[order]
        fresh = np.concatenate(([True], hashes[1:] != hashes[:-1])) if len(hashes) else np.empty(0, bool)
        starts = np.flatnonzero(fresh)
        new_document = fresh | np.concatenate(([True], documents[1:] != documents[:-1])) if len(hashes) else fresh
        counts = np.add.reduceat(new_document.astype(np.int64), starts) if len(starts) else starts
        sizes = np.diff(np.append(starts, len(hashes)))
        leader = np.repeat(documents[starts], sizes)
        goes = np.repeat(counts > options.lines, sizes) & (documents != leader) & (documents >= first)
        for document, line, kept in zip(
            documents[goes].tolist(), places[goes].tolist(), leader[goes].tolist(), strict=True
        ):
            yield Cut(document, "line", line, line + 1, kept)
    report.progress("repeated lines", passes, passes)


def _passages(
    shards: Shards, first: int, dropped: Dropped, words: int, options: GroupOptions, report: Report
) -> list[Cut]:
    """Return the passages of so many words that come earlier in a document that stays."""
    reader = _WordReader(shards)
    pairs = []
    total = sum(len(sketch.array("prints")) for sketch in shards.sketches)
    passes = max(1, -(-total * RECORD_BYTES // options.memory_bytes))
    for number in range(passes):
        report.progress("repeated passages", number, passes + 1)
        hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
        for shard, sketch in enumerate(shards.sketches):
            ends = sketch.array("word_ends")
            for _, prints in sketch.chunks("prints", CHUNK):
                documents = np.searchsorted(ends, prints["word"], side="right") + shards.bases[shard]
                mine = (prints["hash"] % np.uint64(passes) == number) & ~np.isin(documents, dropped.documents)
                hashes.append(prints["hash"][mine])
                places.append(prints["word"][mine] + np.uint64(reader.bases[shard]))
        pairs.append(candidate_pairs(np.concatenate(hashes), np.concatenate(places)))
    cuts: dict[int, list[tuple[int, int, int]]] = {}
    for passage in repeated_passages(np.concatenate(pairs), words, reader.read, reader.bounds):
        document, low = reader.document(passage.start)
        if document >= first:
            kept = reader.document(passage.first)[0]
            cuts.setdefault(document, []).append((passage.start - low, passage.end - low, kept))
    report.progress("repeated passages", passes + 1, passes + 1)
    return [Cut(document, "passage", *merged) for document, found in cuts.items() for merged in _merged(found)]


def _merged(stretches: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return stretches that overlap as one, in order, with the document of the first."""
    whole: list[tuple[int, int, int]] = []
    for start, end, kept in sorted(stretches):
        if whole and start <= whole[-1][1]:
            whole[-1] = whole[-1][0], max(end, whole[-1][1]), whole[-1][2]
        else:
            whole.append((start, end, kept))
    return whole


class _WordReader:
    """The words of all shards as one sequence."""

    def __init__(self, shards: Shards) -> None:
        self._shards, self._taken = shards, 0
        self._open()
        self.bases = np.concatenate(([0], np.cumsum([len(words) for words in self._words], dtype=np.int64)))

    def _open(self) -> None:
        self._words = [sketch.array("words") for sketch in self._shards.sketches]
        self._ends = [sketch.array("word_ends") for sketch in self._shards.sketches]

    def _shard(self, word: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.bases, word, side="right")) - 1
        return shard, word - int(self.bases[shard])

    def read(self, start: int, end: int) -> NDArray[Any]:
        """Return the hashes of words of one document."""
        self._taken += 1024 + end - start  # a page at least
        if self._taken > HELD_WORDS * 8:
            self._open()
            self._taken = 0
        shard, word = self._shard(start)
        return self._words[shard][word : word + end - start]

    def document(self, word: int) -> tuple[int, int]:
        """Return the document that a word is of, and the document's first word."""
        shard, here = self._shard(word)
        number = int(np.searchsorted(self._ends[shard], here, side="right"))
        low = int(self._ends[shard][number - 1]) if number else 0
        return int(self._shards.bases[shard]) + number, low + int(self.bases[shard])

    def bounds(self, word: int) -> tuple[int, int]:
        """Return the first word of a word's document and the one after its last."""
        shard, here = self._shard(word)
        number = int(np.searchsorted(self._ends[shard], here, side="right"))
        low = int(self._ends[shard][number - 1]) if number else 0
        base = int(self.bases[shard])
        return base + low, base + int(self._ends[shard][number])


def _write(shards: Shards, references: int, output: Path, dropped: Dropped, cuts: list[Cut], found: Grouped) -> None:
    """Write a drop list for each shard, whole or none."""
    cut_documents = np.array([cut.document for cut in cuts], np.int64)
    with fsio.new_directory(output) as directory:
        for shard in range(references, len(shards.sketches)):
            sketch, base = shards.sketches[shard], int(shards.bases[shard])
            limits = (base, base + sketch.count)
            drop = slice(*np.searchsorted(dropped.documents, limits).tolist())
            cut = slice(*np.searchsorted(cut_documents, limits).tolist())
            entries = [*_drop_entries(shards, dropped, drop), *_cut_entries(shards, cuts[cut])]
            entries.sort(key=lambda entry: entry["document"])
            header = {"format": FORMAT, "sketch": sketch.name, "documents": sketch.count}
            with fsio.new_file(directory / f"{sketch.name}.jsonl") as file:
                file.writelines(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in [header, *entries])
        fsio.write_new_json(directory / "group.json", asdict(found))


def _drop_entries(shards: Shards, dropped: Dropped, part: slice) -> Iterator[dict[str, Any]]:
    for document, kept, share, exact in zip(*(column[part].tolist() for column in dropped), strict=True):
        about = {"similarity": round(share, 4), "kept_id": shards.id(kept)}
        yield {**_entry(shards, document), "action": "drop", "reason": "exact" if exact else "near", **about}


def _cut_entries(shards: Shards, cuts: Sequence[Cut]) -> Iterator[dict[str, Any]]:
    for cut in cuts:
        where = {"line": cut.start} if cut.reason == "line" else {"words": [cut.start, cut.end]}
        about = {"similarity": 1.0, "kept_id": shards.id(cut.kept)}
        yield {**_entry(shards, cut.document), "action": "cut", "reason": cut.reason, **where, **about}


def _entry(shards: Shards, document: int) -> dict[str, Any]:
    shard, number = shards.shard_of(document)
    sketch = shards.sketches[shard]
    return {"document": number, "id": sketch.id(number), "text_hash": bytes(sketch.array("texts")[number]).hex()}
