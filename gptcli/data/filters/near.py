"""Sketches -> pairs of documents that are alike, found by bands of their signatures and checked by all of it.

A document's number counts through all shards in order. Memory is bounded by passes: each looks at the keys that fall
to it, and the pairs are the same however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.base.report import Report
from gptcli.data.filters.sketch import HASHES, Sketch
from gptcli.data.filters.words import Hashes, mixed

RECORD_BYTES = 64  # of memory for a key in a pass: key, document, order, and copies of them
CHUNK = 1 << 16  # records read at once
ROUNDS = 16  # leaders of one band's key: documents that share it and are not alike
ROWS = (12, 10, 8, 6, 5, 4, 3)  # of a band
Pairs = NDArray[np.int64]  # (pairs, 2) later and earlier document


def rows_of_a_band(similarity: float) -> int:
    """Return the most rows at which a pair a third of the way from `similarity` to 1 is missed in 1 of 100 at most."""
    wanted = similarity + (1 - similarity) / 3
    return next((rows for rows in ROWS if (1 - wanted**rows) ** (HASHES // rows) <= 0.01), ROWS[-1])


class Shards:
    """Sketches as one: documents are numbered through all of them."""

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        self.sketches = sketches
        self.bases = np.concatenate(([0], np.cumsum([sketch.count for sketch in sketches], dtype=np.int64)))

    @property
    def count(self) -> int:
        return int(self.bases[-1])

    def shard_of(self, document: int) -> tuple[int, int]:
        """Return the number of a document's sketch, and its number there."""
        shard = int(np.searchsorted(self.bases, document, side="right")) - 1
        return shard, document - int(self.bases[shard])

    def id(self, document: int) -> str | int:
        """Return a document's id."""
        shard, number = self.shard_of(document)
        return self.sketches[shard].id(number)

    def rows(self, name: str, documents: NDArray[np.int64]) -> NDArray[Any]:
        """Return the rows of a file for documents in any order."""
        shards = np.searchsorted(self.bases, documents, side="right") - 1
        kind = self.sketches[0].array(name)
        found = np.empty((len(documents), *kind.shape[1:]), kind.dtype)
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self.sketches[shard].array(name)[documents[here] - self.bases[shard]]
        return found


def exact_pairs(shards: Shards, memory_bytes: int, report: Report) -> Pairs:
    """Return each document whose text occurred before, with the first one that has it."""

    def keys(passes: int, number: int) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
        for base, sketch in zip(shards.bases, shards.sketches, strict=False):
            for first, texts in sketch.chunks("texts", CHUNK):
                halves = texts.view("<u8").reshape(-1, 2)
                yield _mine(halves[:, 0] ^ mixed(halves[:, 1]), np.arange(len(texts)) + base + first, passes, number)

    found = [np.empty((0, 2), np.int64)]
    passes = _passes(shards.count, memory_bytes)
    for number in range(passes):
        report.progress("exact duplicates", number, passes)
        documents, starts = _alike(keys(passes, number))
        same = lambda pairs: shards.rows("texts", pairs[:, 0]) == shards.rows("texts", pairs[:, 1])  # noqa: E731
        found.append(_led(documents, starts, same))
    report.progress("exact duplicates", passes, passes)
    return np.concatenate(found)


def near_pairs(shards: Shards, similarity: float, memory_bytes: int, report: Report) -> Pairs:
    """Return pairs of documents whose signatures agree in a share of at least `similarity`, in order.

    Of documents that share a band's key each is compared with the first one that nobody before it was like.
    """
    rows = rows_of_a_band(similarity)
    passes, bands = _passes(shards.count, memory_bytes), HASHES // rows
    most_pairs = max(1024, memory_bytes // (1 << 15))  # whose pages of signatures fit

    def alike(pairs: Pairs) -> NDArray[np.bool_]:
        parts = [pairs[start : start + most_pairs] for start in range(0, len(pairs), most_pairs)]
        return np.concatenate(
            [np.empty(0, bool), *(signature_similarity(shards, part) >= similarity for part in parts)]
        )

    found = np.empty(0, np.int64)
    width = max(1, shards.count)
    for band in range(bands):
        for number in range(passes):
            report.progress("near duplicates", band * passes + number, bands * passes)
            documents, starts = _alike(_band_keys(shards, slice(band * rows, (band + 1) * rows), passes, number))
            pairs = _led(documents, starts, alike)
            found = np.unique(np.concatenate((found, pairs[:, 0] * width + pairs[:, 1])))
    report.progress("near duplicates", bands * passes, bands * passes)
    return np.stack((found // width, found % width), axis=1)


def signature_similarity(shards: Shards, pairs: Pairs) -> NDArray[np.float64]:
    """Return the share of places in which the signatures of each pair agree: an estimate of Jaccard's similarity."""
    equal = shards.rows("signatures", pairs[:, 0]) == shards.rows("signatures", pairs[:, 1])
    shares: NDArray[np.float64] = equal.mean(axis=1)
    return shares


def _band_keys(shards: Shards, band: slice, passes: int, number: int) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
    """Yield the keys of one band, and whose they are; a document without words has none."""
    for base, sketch in zip(shards.bases, shards.sketches, strict=False):
        for first, signatures in sketch.chunks("signatures", CHUNK):
            filled = np.flatnonzero((signatures != 0xFFFF).any(axis=1))
            keys = np.zeros(len(filled), np.uint64)
            for column in signatures[filled, band].T:
                keys = mixed(keys ^ column.astype(np.uint64)) + np.uint64(1)
            yield _mine(keys, filled + base + first, passes, number)


def _passes(records: int, memory_bytes: int) -> int:
    return max(1, -(-records * RECORD_BYTES // memory_bytes))


def _mine(keys: Hashes, documents: NDArray[np.int64], passes: int, number: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the keys that fall to a pass."""
    mine = slice(None) if passes == 1 else np.flatnonzero(keys % np.uint64(passes) == number)
    return keys[mine], documents[mine]


def _alike(parts: Iterator[tuple[Hashes, NDArray[np.int64]]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the documents that share their key with another, group by group, and where each group starts."""
    found = list(parts)
    keys = np.concatenate([np.empty(0, np.uint64), *(part for part, _ in found)])
    documents = np.concatenate([np.empty(0, np.int64), *(part for _, part in found)])
    del found
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    same = keys[1:] == keys[:-1]
    shared = np.concatenate(([False], same)) | np.concatenate((same, [False])) if len(keys) else np.empty(0, bool)
    keys, documents = keys[shared], documents[shared]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.empty(0, np.int64)
    return documents, starts


def _led(documents: NDArray[np.int64], starts: NDArray[np.int64], alike: Callable[[Pairs], NDArray[np.bool_]]) -> Pairs:
    """Return (document, leader) for each document of a group that is like the group's leader.

    The first document of a group leads it; those that are not like it make a group of their own, in the next round.
    """
    found = [np.empty((0, 2), np.int64)]
    for _ in range(ROUNDS):
        if not len(documents):
            break
        sizes = np.diff(np.append(starts, len(documents)))
        group = np.repeat(np.arange(len(starts)), sizes)
        others = np.ones(len(documents), bool)
        others[starts] = False
        pairs = np.stack((documents[others], documents[starts][group[others]]), axis=1)
        like = alike(pairs)
        found.append(pairs[like])
        documents, group = pairs[~like, 0], group[others][~like]
        starts = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1]))) if len(group) else group
    return np.concatenate(found)
