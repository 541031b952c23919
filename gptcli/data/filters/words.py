"""Texts -> words, as hashes: what documents are compared by.

A word is a run of letters, marks and digits, or one character of a script that sets no spaces (Han, kana, Thai, Lao,
Khmer, Burmese, Tibetan). Case, width and compatibility forms are folded (single characters of NFKC, then casefold);
punctuation and white space do not count. All arithmetic is modulo 2**64, in NumPy, on blocks of many documents.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
MASK = (1 << 64) - 1
CHUNK_CHARACTERS = 1 << 18  # hashed at once, so that what they take stays in a cache
_SEPARATOR, _IN_WORD, _ALONE = 0, 1, 2
_WITHOUT_SPACES = (
    (0x0E00, 0x0F00), (0x0F00, 0x1000), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3100), (0x31F0, 0x3200),
    (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00), (0xFF66, 0xFFA0),
)  # fmt: skip


class Words(NamedTuple):
    """The words of some texts, one text after another."""

    hashes: Hashes  # (words,) of each
    starts: Places  # (words,) its first character, in its text
    ends: Places  # (words,) the character after its last
    offsets: Places  # (texts + 1,) the first word of each text, and the number of all


def words_of(texts: Sequence[str]) -> Words:
    """Return the words of the texts."""
    whole = "\n".join(texts)
    found: list[tuple[Hashes, Places, Places]] = []
    start = 0
    while start < len(whole):
        end = _chunk_end(whole, start)
        hashes, starts, ends = _chunk_words(whole[start:end])
        found.append((hashes, starts + start, ends + start))
        start = end
    if not found:
        nothing = np.empty(0, np.int64)
        return Words(np.empty(0, np.uint64), nothing, nothing, np.zeros(len(texts) + 1, np.int64))
    hashes, starts, ends = (np.concatenate(parts) for parts in zip(*found, strict=True))
    first = np.cumsum([0, *(len(text) + 1 for text in texts)])
    offsets = np.searchsorted(starts, first)
    shift = np.repeat(first[:-1], np.diff(offsets))
    return Words(hashes, starts - shift, ends - shift, offsets)


def _chunk_end(text: str, start: int) -> int:
    """Return where a chunk ends: after white space, or in the middle of a word of 4,096 characters."""
    end = start + CHUNK_CHARACTERS
    if end >= len(text):
        return len(text)
    space = max(text.rfind(" ", end - 4096, end), text.rfind("\n", end - 4096, end))
    return space + 1 if space >= 0 else end


def _chunk_words(text: str) -> tuple[Hashes, Places, Places]:
    """Return the hashes of a text's words, their starts and their ends."""
    kinds, folds = _tables()
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    high = points > 0xFFFF
    if high.any():
        low = np.minimum(points, 0xFFFF)
        kind, folded = kinds[low], np.where(high, points, folds[low])
        kind[high] = np.where(points[high] >= 0x20000, _ALONE, _IN_WORD)
        kind[(points >= 0x1F000) & (points < 0x20000)] = _SEPARATOR  # emoji and other pictures
        folded[kind == _SEPARATOR] = 0
    else:
        kind, folded = kinds[points], folds[points]
    inside, alone = kind == _IN_WORD, kind == _ALONE
    begins, finishes = inside.copy(), inside.copy()
    begins[1:] &= ~inside[:-1]
    finishes[:-1] &= ~inside[1:]
    starts, ends = np.flatnonzero(begins | alone), np.flatnonzero(finishes | alone) + 1
    if not len(starts):
        return np.empty(0, np.uint64), starts, ends
    powers, inverses = _powers(len(points))
    sums = np.add.reduceat(folded * powers, starts)  # what lies between words is 0
    return mixed(sums * inverses[starts]), starts, ends


def mixed(values: Hashes) -> Hashes:
    """Return the values with every bit depending on all others (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def grams(words: Words, size: int) -> tuple[Hashes, Places]:
    """Return the hashes of all runs of `size` words that lie in one text, (runs,), and the first word of each."""
    count = len(words.hashes)
    if count < size:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    powers, inverses = _powers(count + 1)
    sums = np.zeros(count + 1, np.uint64)
    np.cumsum(words.hashes * powers[:-1], out=sums[1:])
    hashes = mixed((sums[size:] - sums[:-size]) * inverses[: count - size + 1])
    lengths = np.diff(words.offsets)
    left = np.repeat(words.offsets[1:], lengths) - np.arange(count)  # words of the text from here on
    places = np.flatnonzero(left >= size)
    return hashes[places], places


def shingles(words: Words, size: int) -> tuple[Hashes, Places]:
    """Return the hashes of the runs of `size` words, text by text, and (texts + 1,) where each text's begin.

    A text of fewer words has one, of all its words; a text without words has none.
    """
    lengths = np.diff(words.offsets)
    counts = np.where(lengths >= size, lengths - size + 1, np.minimum(lengths, 1))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    found = np.empty(int(offsets[-1]), np.uint64)
    hashes, _ = grams(words, size)
    is_long = np.repeat(lengths >= size, counts)
    found[is_long] = hashes
    short = np.flatnonzero((lengths < size) & (lengths > 0))
    for text in short:
        total = 0
        for word in words.hashes[words.offsets[text] : words.offsets[text + 1]]:
            total = (total * BASE + int(word)) & MASK
        found[offsets[text]] = total
    return found, offsets


@cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Return the kind and the folded form of each character of the basic plane."""
    kinds, folds = np.zeros(1 << 16, np.uint8), np.zeros(1 << 16, np.uint32)  # 0 for a separator
    for point in range(1 << 16):
        character = chr(point)
        if unicodedata.category(character)[0] in "LNM":
            kinds[point] = _IN_WORD
            folded = unicodedata.normalize("NFKC", character).casefold()
            folds[point] = ord(folded) if len(folded) == 1 else point
    for start, end in _WITHOUT_SPACES:
        kinds[start:end][kinds[start:end] == _IN_WORD] = _ALONE
    return kinds, folds


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Return the first powers of BASE and of its inverse."""
    powers, inverses = _power_table(max(16, (count - 1).bit_length()))
    return powers[:count], inverses[:count]


@lru_cache(maxsize=2)
def _power_table(bits: int) -> tuple[Hashes, Hashes]:
    made = []
    for base in (BASE, pow(BASE, -1, 1 << 64)):
        values = np.full(1 << bits, base, np.uint64)
        values[0] = 1
        made.append(np.cumprod(values))
    return made[0], made[1]
