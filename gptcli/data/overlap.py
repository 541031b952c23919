"""Passages of 50 words or more that two texts share: held-out text that is trained on, documents that belong together.

Held-out text is kept as a hash of every 50 words that follow one another. The other text streams by. A filter finds the
stretches of it that may share a passage, by hashes of 64 letters at places that their content chooses (as in winnowing,
Schleimer et al. 2003), and only those are looked at word by word. Memory is bounded by HELD_OUT_CHARACTERS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.base.escape import escape
from gptcli.data.text import Piece

PASSAGE_WORDS = 50
HELD_OUT_CHARACTERS = 1 << 24
BLOCK_CHARACTERS, TAIL_CHARACTERS = 1 << 16, 1 << 12  # a passage lies in a block or in the tail of the one before it
ANCHOR_LETTERS, FILTER_BITS = 64, 22
ANCHOR_BELOW = np.uint64(1 << 60)  # of a hash of 64 bits: one place in 16 is an anchor

# A word, or one character of a script that is written without spaces.
_ALONE = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[^\W{_ALONE}]+|[{_ALONE}]")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xD6E8FEB86659FD93
_INVERSE = pow(_BASE, -1, 1 << 64)
_FOLDS = np.array([pow(_BASE, power, 1 << 64) for power in range(8)], dtype=np.uint64)

# Letters and digits in lower case, and all bytes beyond ASCII.
_LOWER = bytes(range(256)).lower()
_NO_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalnum())

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """The part of a held-out text that lies in passages of `passage_words` or more which another text has, too."""

    held_out_words: int
    shared_words: int
    first: str  # the beginning of the first such passage
    passage_words: int = PASSAGE_WORDS
    whole: bool = True  # the text was compared to its end

    @property
    def share(self) -> float:
        return self.shared_words / max(1, self.held_out_words)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def warning(self, names: str = "the held-out text") -> str:
        """Return one line for a person, "" where nothing is shared."""
        if not self.shared_words:
            return ""
        of = "" if self.whole else "the beginning of "
        return (
            f"{_percent(self.share)} % of {of}{names} ({self.shared_words:,} of {self.held_out_words:,} words) is in "
            f"the training text, in passages of {self.passage_words} words or more: its loss flatters; the first is "
            f"'{escape(self.first, 60)}'"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; each character of a script without spaces is one."""
    return _WORD.findall(text.lower())


def passage_hashes(words: Sequence[str]) -> Hashes:
    """Return a hash of each PASSAGE_WORDS words that follow one another, (words - PASSAGE_WORDS + 1,) or none.

    A polynomial rolls over them (Karp & Rabin 1987), modulo 2^64; hashes of words are those of this process.
    """
    if len(words) < PASSAGE_WORDS:
        return np.zeros(0, dtype=np.uint64)
    with np.errstate(over="ignore"):
        hashes = np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)
        powers = np.cumprod(np.full(len(words), _BASE, dtype=np.uint64))
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hashes * powers)])
        inverse = np.cumprod(np.full(len(words) - PASSAGE_WORDS + 1, _INVERSE, dtype=np.uint64))
        return (sums[PASSAGE_WORDS:] - sums[:-PASSAGE_WORDS]) * inverse


def anchors(text: str) -> Hashes:
    """Return hashes of the 64 letters after each place that its content makes an anchor; white space and punctuation
    do not count."""
    letters = np.frombuffer(text.encode().translate(_LOWER, _NO_LETTERS), dtype=np.uint8)
    if len(letters) < ANCHOR_LETTERS:
        return np.zeros(0, dtype=np.uint64)
    places = []
    for offset in range(8):
        whole = letters[offset : offset + (len(letters) - offset) // 8 * 8].copy().view(np.uint64)
        places.append(np.flatnonzero(whole * _ODD < ANCHOR_BELOW) * 8 + offset)
    chosen = np.concatenate(places)
    chosen = chosen[chosen <= len(letters) - ANCHOR_LETTERS]
    windows = np.lib.stride_tricks.sliding_window_view(letters, ANCHOR_LETTERS)[chosen]
    mixed = (windows.view(np.uint64) * _FOLDS).sum(1, dtype=np.uint64) * _ODD
    return mixed ^ (mixed >> np.uint64(29))


class HeldOut:
    """A held-out text, and which of its passages were found elsewhere."""

    def __init__(self, documents: Iterable[str]) -> None:
        self.documents: list[list[str]] = []
        self.whole = True
        found, marks, characters = [], [np.zeros(0, dtype=np.uint64)], 0
        for text in documents:
            if characters >= HELD_OUT_CHARACTERS:
                self.whole = False
                break
            characters += len(text)
            self.documents.append(words_of(text))
            found.append(passage_hashes(self.documents[-1]))
            marks.append(anchors(text))
        self.hashes = found
        self._sorted = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint64)
        self._shared = np.zeros(len(self._sorted), dtype=bool)
        self._anchors = np.unique(np.concatenate(marks))
        self._filter = np.zeros(1 << FILTER_BITS, dtype=bool)
        self._filter[self._anchors >> np.uint64(64 - FILTER_BITS)] = True

    def look_in(self, text: str) -> None:
        """Note the passages that a text has, too."""
        found = anchors(text)
        found = found[self._filter[found >> np.uint64(64 - FILTER_BITS)]]
        if len(found) and _is_in(found, self._anchors).any():
            there = passage_hashes(words_of(text))
            self._shared[np.searchsorted(self._sorted, there[_is_in(there, self._sorted)])] = True

    def overlap(self) -> Overlap:
        """Return how much was found elsewhere."""
        shared, first = 0, ""
        for words, hashes in zip(self.documents, self.hashes, strict=True):
            begins = np.flatnonzero(self._shared[np.searchsorted(self._sorted, hashes)])
            if len(begins):
                covered = np.zeros(len(words) + 1, dtype=np.int64)
                np.add.at(covered, begins, 1)
                np.add.at(covered, begins + PASSAGE_WORDS, -1)
                shared += int((np.cumsum(covered) > 0).sum())
                first = first or " ".join(words[begins[0] : begins[0] + 12])
        return Overlap(sum(map(len, self.documents)), shared, first, whole=self.whole)


def _is_in(wanted: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Return whether each is one of the known ones, which are sorted."""
    if not len(known):
        return np.zeros(len(wanted), dtype=bool)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[places] == wanted


def find_overlap(
    held_out: Iterable[Piece], training: Iterable[Piece], progress: Callable[[int], None] = lambda _: None
) -> Overlap:
    """Return how much of the held-out text is in the training text; `progress` gets the bytes of the latter."""
    known = HeldOut(_texts(held_out))
    if not any(len(hashes) for hashes in known.hashes):
        return known.overlap()
    done, tail = 0, ""
    for piece in training:
        tail = "" if piece.starts_document else tail
        for start in range(0, len(piece.text), BLOCK_CHARACTERS):
            block = tail + piece.text[start : start + BLOCK_CHARACTERS]
            known.look_in(block)
            tail = block[-TAIL_CHARACTERS:]
        done += piece.raw_bytes
        progress(done)
    return known.overlap()


def _texts(pieces: Iterable[Piece]) -> Iterator[str]:
    """Yield whole documents, but one of more than HELD_OUT_CHARACTERS in parts."""
    parts: list[str] = []
    characters = 0
    for piece in pieces:
        if parts and (piece.starts_document or characters > HELD_OUT_CHARACTERS):
            yield "".join(parts)
            parts, characters = [], 0
        parts.append(piece.text)
        characters += len(piece.text)
    if parts:
        yield "".join(parts)


def groups(texts: Sequence[str]) -> list[list[int]]:
    """Return the numbers of texts in groups, in order of their first: two that share a passage are in one group."""
    parent = list(range(len(texts)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    hashes = [passage_hashes(words_of(text)) for text in texts]
    every = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
    owner = np.repeat(np.arange(len(texts)), [len(found) for found in hashes])
    order = np.argsort(every, kind="stable")
    same = np.flatnonzero(every[order][1:] == every[order][:-1])
    for one, other in set(zip(owner[order][same].tolist(), owner[order][same + 1].tolist(), strict=True)):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    found: dict[int, list[int]] = {}
    for number in range(len(texts)):
        found.setdefault(root(number), []).append(number)
    return list(found.values())
