"""Long passages that occurred before: winnowed fingerprints (Schleimer, Wilkerson, Aiken 2003), then word by word.

Of a passage of t words every run of k = t // 2 + 1 words has a hash, and of any w = t - k + 1 hashes that follow each
other the smallest is kept. Two texts that share t words therefore keep the same hash of them: none is missed. What
shares a hash is compared word by word in both directions, so that a passage of t - 1 words is not taken for one of t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptcli.data.filters.words import Hashes, Places, Words, grams

COMPARED = 8  # of the first and of the last earlier occurrences of a fingerprint
STEP = 64  # words compared at once at first, twice as many each time


def fingerprints(words: Words, passage_words: int) -> tuple[Hashes, Places]:
    """Return the fingerprints that are kept, (prints,), and the first word of each."""
    size = passage_words // 2 + 1
    window = passage_words - size + 1
    hashes, places = grams(words, size)
    if len(hashes) < window:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    whole = places[window - 1 :] - places[: 1 - window or None] == window - 1  # no border of texts in the window
    windows = np.lib.stride_tricks.sliding_window_view(hashes, window)
    kept = np.zeros(len(hashes), bool)
    for start in range(0, len(windows), 1 << 16):
        smallest = windows[start : start + (1 << 16)].argmin(axis=1) + np.arange(
            start, min(start + (1 << 16), len(windows))
        )
        kept[smallest[whole[start : start + (1 << 16)]]] = True
    return hashes[kept], places[kept]


class Passage(NamedTuple):
    """Words [start, end) that are those from `first` on, which come earlier; numbers are of the words of all shards."""

    start: int
    end: int
    first: int


def candidate_pairs(hashes: Hashes, words: Hashes) -> NDArray[np.int64]:
    """Return (pairs, 2): later and earlier word where two fingerprints are the same; both inputs in order of words.

    Each is paired with the first COMPARED and the last COMPARED before it of its kind, not with all: what is repeated
    a million times costs as many comparisons, not their square.
    """
    order = np.argsort(hashes, kind="stable")
    hashes, words = hashes[order], words[order].astype(np.int64)
    fresh = np.concatenate(([True], hashes[1:] != hashes[:-1])) if len(hashes) else np.empty(0, bool)
    starts = np.flatnonzero(fresh)
    rank = np.arange(len(hashes)) - np.repeat(starts, np.diff(np.append(starts, len(hashes))))
    found = [np.empty((0, 2), np.int64)]
    for back in range(1, COMPARED + 1):
        later = np.flatnonzero(rank >= back)
        found.append(np.stack((words[later], words[later - back]), axis=1))
    for first in range(COMPARED):
        later = np.flatnonzero(rank > first + COMPARED)
        found.append(np.stack((words[later], words[later - rank[later] + first]), axis=1))
    return np.concatenate(found)


def repeated_passages(
    pairs: NDArray[np.int64],
    passage_words: int,
    read: Callable[[int, int], NDArray[Any]],
    bounds: Callable[[int], tuple[int, int]],
) -> Iterator[Passage]:
    """Yield the passages of at least `passage_words` words that pairs of places belong to.

    `read(start, end)` gives hashes of words, `bounds(word)` the first word of its document and the one after its last.
    """
    delta = pairs[:, 0] - pairs[:, 1]
    pairs = pairs[np.lexsort((pairs[:, 0], delta))]
    done_delta, done_end = -1, -1
    for later, earlier in pairs.tolist():
        if later - earlier == done_delta and later < done_end:
            continue  # within the passage before
        (later_low, later_high), (earlier_low, earlier_high) = bounds(later), bounds(earlier)
        back = _same(read, later, earlier, min(later - later_low, earlier - earlier_low), -1)
        on = _same(read, later, earlier, min(later_high - later, earlier_high - earlier), 1)
        done_delta, done_end = later - earlier, later + on
        if back + on >= passage_words:
            yield Passage(later - back, later + on, earlier - back)


def _same(read: Callable[[int, int], NDArray[Any]], later: int, earlier: int, most: int, way: int) -> int:
    """Return how many words are the same from two places on, or before them where `way` is -1."""
    same, step = 0, STEP
    while same < most:
        size = min(step, most - same)
        if way > 0:
            equal = read(later + same, later + same + size) == read(earlier + same, earlier + same + size)
        else:
            equal = read(later - same - size, later - same) == read(earlier - same - size, earlier - same)
            equal = equal[::-1]
        if not equal.all():
            return same + int(equal.argmin())
        same, step = same + size, step * 2
    return same
