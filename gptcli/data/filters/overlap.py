"""Items of evaluation sets, and the documents of a corpus that hold them.

An item is found where at least a share of its 5-word grams lies in one place of a document: a stretch half as long
again as the item. So it is found re-wrapped, in the middle of a long text and with some words changed, and not where
common phrases of it are scattered over a book. An item of less than 13 words must be there whole.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptcli.base.errors import DataError
from gptcli.data.filters.words import Hashes, grams, words_of

GRAM_WORDS = 5
WHOLE_BELOW = 13  # words
COMMON = 64  # a gram of more items is none's
TRIED = 24  # items in the self-test


class Item(NamedTuple):
    """One item of an evaluation set."""

    name: str
    texts: tuple[str, ...]  # of its fields


class Hit(NamedTuple):
    """An item in a text."""

    item: int
    share: float  # of its grams
    start: int  # first word
    end: int  # word after the last


@dataclass(frozen=True)
class Index:
    """The grams of all items, sorted, and whose they are."""

    items: tuple[Item, ...]
    grams: Hashes
    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]  # (items,) grams that are looked for
    words: NDArray[np.int64]  # (items,)

    @property
    def too_short(self) -> int:
        """Return how many items have too few words, or none of their own, to be looked for."""
        return int((self.sizes == 0).sum())


def build_index(items: Sequence[Item]) -> Index:
    """Return the index of some items."""
    parts: list[Hashes] = []
    words: list[int] = []
    for item in items:
        found = words_of(item.texts)
        hashes, _ = grams(found, GRAM_WORDS)
        if not len(hashes):  # fields of a word or two: as one text
            found = words_of([" ".join(item.texts)])
            hashes, _ = grams(found, GRAM_WORDS)
        parts.append(np.unique(hashes))
        words.append(len(found.hashes))
    owners = np.repeat(np.arange(len(items)), [len(part) for part in parts])
    hashes = np.concatenate([np.empty(0, np.uint64), *parts])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    _, place, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    own = counts[place] <= COMMON
    sizes = np.bincount(owners[own], minlength=len(items))
    return Index(tuple(items), hashes[own], owners[own], sizes, np.array(words, np.int64))


def find_items(texts: Sequence[str], index: Index, share: float) -> list[list[Hit]]:
    """Return the items that each of some texts holds, the best first."""
    words = words_of(texts)
    hashes, places = grams(words, GRAM_WORDS)
    low, high = (np.searchsorted(index.grams, hashes, side=side) for side in ("left", "right"))
    met = np.flatnonzero(high > low)
    found: list[list[Hit]] = [[] for _ in texts]
    if not len(met):
        return found
    counts = (high - low)[met]
    owners = index.owners[_ranges(low[met], counts)]
    where, which = np.repeat(places[met], counts), np.repeat(hashes[met], counts)
    documents = np.searchsorted(words.offsets, where, side="right") - 1
    order = np.lexsort((where, owners, documents))
    documents, owners, where, which = documents[order], owners[order], where[order], which[order]
    starts = np.flatnonzero(np.concatenate(([True], (documents[1:] != documents[:-1]) | (owners[1:] != owners[:-1]))))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(owners)], strict=True):
        item, document = int(owners[start]), int(documents[start])
        wanted = _wanted(index, item, share)
        if end - start >= wanted:
            best = _best_place(where[start:end].tolist(), which[start:end].tolist(), int(index.words[item] * 1.5) + 10)
            if best[0] >= wanted:
                base = int(words.offsets[document])
                share_found = best[0] / int(index.sizes[item])
                found[document].append(Hit(item, share_found, best[1] - base, best[2] + GRAM_WORDS - base))
    return [sorted(hits, key=lambda hit: (-hit.share, hit.item)) for hits in found]


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of all ranges [start, start + count), one after another."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1])) + np.repeat(starts - (ends - counts), counts)


def _wanted(index: Index, item: int, share: float) -> int:
    whole = index.words[item] < WHOLE_BELOW
    return int(index.sizes[item]) if whole else max(1, math.ceil(share * int(index.sizes[item])))


def _best_place(where: Sequence[int], which: Sequence[int], width: int) -> tuple[int, int, int]:
    """Return (distinct grams, first place, last place) of the stretch of `width` words that holds most of them."""
    best, first = (0, 0, 0), 0
    inside: Counter[int] = Counter()
    for last, place in enumerate(where):
        inside[which[last]] += 1
        while where[first] < place - width:
            inside[which[first]] -= 1
            if not inside[which[first]]:
                del inside[which[first]]
            first += 1
        if len(inside) > best[0]:
            best = len(inside), where[first], place
    return best


def self_test(index: Index, share: float) -> int:
    """Check the index by planting some of its items, re-wrapped, in the middle of other text; return how many were
    tried.

    Raises DataError where one of them is not found, or one is found in text that holds none.
    """
    able = np.flatnonzero(index.sizes)
    chosen = able[np.linspace(0, len(able) - 1, min(TRIED, len(able))).astype(int)] if len(able) else able
    draw = random.Random(0)
    filler = " ".join(
        "".join(draw.choice("bcdfgklmnprst") + draw.choice("aeiou") for _ in range(3)) for _ in range(400)
    )
    for number in map(int, chosen):
        item = index.items[number]
        text = f"{filler}. {'. '.join(_wrapped(text) for text in item.texts)}\n{filler}"
        if number not in {hit.item for hit in find_items([text], index, share)[0]}:
            raise DataError(f"self-test: {item.name} was put into a text and not found there; this is a bug in gptcli")
    if find_items([filler], index, share)[0]:
        raise DataError("self-test: an item was found in text that holds none; this is a bug in gptcli")
    return len(chosen)


def _wrapped(text: str) -> str:
    """Return a text with 8 words a line."""
    words = text.split()
    return "\n".join(" ".join(words[start : start + 8]) for start in range(0, len(words), 8))


def merged_stretches(hits: Sequence[Hit]) -> Iterator[tuple[int, int]]:
    """Yield the words [start, end) of hits, those that overlap as one."""
    stretch: tuple[int, int] | None = None
    for hit in sorted(hits, key=lambda hit: hit.start):
        if stretch and hit.start <= stretch[1]:
            stretch = stretch[0], max(stretch[1], hit.end)
        else:
            if stretch:
                yield stretch
            stretch = hit.start, hit.end
    if stretch:
        yield stretch
