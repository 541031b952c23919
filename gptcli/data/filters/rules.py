"""A text, and which of the rules it breaks. One look at words and lines serves all of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gptcli.config.corpus import Rules
from gptcli.data.filters.words import Words, grams, words_of

STOP_WORDS = frozenset("the be to of and that have with".split())
END_PUNCTUATION = (".", "?", "!", '"', "'", "”", "’", "…", "。", "？", "！", "」", "»")
BULLETS = ("•", "‣", "▪", "●", "○", "-", "*", "–")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?:\s|$)|[。！？]")
_PARAGRAPHS = re.compile(r"\n{2,}")
SHORT_LINE = 30


class _Measured:
    """Measures of a text, each made where a rule asks for it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._grams: dict[int, float] = {}
        self.words = text.split()
        self.lines = [line.strip() for line in text.split("\n") if line.strip()]

    @cached_property
    def counted(self) -> int:
        return max(1, len(self.words))

    @cached_property
    def hashed(self) -> tuple[Words, NDArray[np.int64], int]:
        words = words_of([self.text])
        lengths = words.ends - words.starts
        return words, np.concatenate(([0], np.cumsum(lengths))), max(1, int(lengths.sum()))

    def share_of_lines(self, holds: Callable[[str], bool]) -> float:
        return sum(map(holds, self.lines)) / max(1, len(self.lines))

    def repeated(self, parts: Sequence[str]) -> tuple[float, float]:
        """Return the share of parts that occurred before, and that of their characters in the text."""
        seen: set[str] = set()
        number = characters = 0
        for part in parts:
            if part in seen:
                number += 1
                characters += len(part)
            seen.add(part)
        return number / max(1, len(parts)), characters / max(1, len(self.text))

    @cached_property
    def repeated_lines(self) -> tuple[float, float]:
        return self.repeated(self.lines)

    @cached_property
    def repeated_paragraphs(self) -> tuple[float, float]:
        return self.repeated(_PARAGRAPHS.split(self.text.strip()))

    def top_gram(self, size: int) -> float:
        """Return the share of the words' characters in the most frequent run of `size` words; 0 where none repeats."""
        words, ends, total = self.hashed
        hashes, places = grams(words, size)
        if not len(hashes):
            return 0.0
        kinds, counts = np.unique(hashes, return_counts=True)
        top = int(counts.argmax())
        if counts[top] < 2:
            return 0.0
        place = int(places[np.flatnonzero(hashes == kinds[top])[0]])
        return float(counts[top]) * int(ends[place + size] - ends[place]) / total

    def repeated_grams(self, size: int) -> float:
        """Return the share of the words' characters in runs of `size` words that occurred before."""
        if size not in self._grams:
            self._grams[size] = self._repeated_grams(size)
        return self._grams[size]

    def _repeated_grams(self, size: int) -> float:
        words, ends, total = self.hashed
        hashes, places = grams(words, size)
        ordered = np.sort(hashes)
        if not (ordered[1:] == ordered[:-1]).any():
            return 0.0
        _, first = np.unique(hashes, return_index=True)
        again = np.ones(len(hashes), bool)
        again[first] = False
        covered = np.zeros(len(ends), np.int64)
        covered[places[again]] += 1
        np.subtract.at(covered, places[again] + size, 1)
        inside = np.cumsum(covered)[:-1] > 0
        return float(np.diff(ends)[inside].sum()) / total


_MEASURES: dict[str, Callable[[_Measured], float]] = {
    "words": lambda text: len(text.words),
    "word_length": lambda text: sum(map(len, text.words)) / text.counted,
    "symbols": lambda text: (text.text.count("#") + text.text.count("…") + text.text.count("...")) / text.counted,
    "bullet_lines": lambda text: text.share_of_lines(lambda line: line.startswith(BULLETS)),
    "ellipsis_lines": lambda text: text.share_of_lines(lambda line: line.endswith(("…", "..."))),
    "alphabetic_words": lambda text: (
        sum(word[0].isalpha() or any(map(str.isalpha, word)) for word in text.words) / text.counted
    ),
    "stop_words": lambda text: len(STOP_WORDS.intersection(map(str.lower, text.words))),
    "repeated_lines": lambda text: text.repeated_lines[0],
    "repeated_line_characters": lambda text: text.repeated_lines[1],
    "repeated_paragraphs": lambda text: text.repeated_paragraphs[0],
    "repeated_paragraph_characters": lambda text: text.repeated_paragraphs[1],
    "sentences": lambda text: sum(1 for _ in _SENTENCE_END.finditer(text.text)),
    "punctuated_lines": lambda text: text.share_of_lines(lambda line: line.endswith(END_PUNCTUATION)),
    "short_lines": lambda text: text.share_of_lines(lambda line: len(line) <= SHORT_LINE),
    "newlines_for_words": lambda text: text.text.count("\n") / text.counted,
    **{f"top_{n}_gram": (lambda text, n=n: text.top_gram(n)) for n in (2, 3, 4)},  # type: ignore[misc]
    **{f"repeated_{n}_grams": (lambda text, n=n: text.repeated_grams(n)) for n in range(5, 11)},  # type: ignore[misc]
}


def broken_rules(text: str, rules: Rules) -> Iterator[str]:
    """Yield what a text breaks, `words_min: 12 < 50`."""
    if rules.code_and_filler and ("{" in text or "lorem ipsum" in text.lower()):
        yield "code_and_filler: '{' or 'lorem ipsum'"
    measured = _Measured(text)
    for declared in fields(rules):
        name, _, bound = declared.name.rpartition("_")
        limit = getattr(rules, declared.name)
        if bound not in ("min", "max") or limit is None:
            continue
        if name.endswith("_grams") and measured.repeated_grams(5) <= limit:
            continue  # what is in a repeated run of more words is in one of five
        found = _MEASURES[name](measured)
        if found < limit if bound == "min" else found > limit:
            yield f"{declared.name}: {found:.4g} {'<' if bound == 'min' else '>'} {limit:g}"


def without_c4_lines(text: str) -> str:
    """Return a text without the lines that C4 leaves out."""
    return "\n".join(line for line in text.split("\n") if _is_c4_line(line.strip()))


def _is_c4_line(line: str) -> bool:
    if not line:
        return True
    lower = line.lower()
    ends = line.endswith(END_PUNCTUATION) and not line.endswith(("...", "…"))
    return ends and len(line.split()) >= 3 and "javascript" not in lower and "cookie policy" not in lower


def commonest(reasons: Counter[str], most: int = 10) -> list[tuple[str, int]]:
    """Return the commonest reasons, then by name."""
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:most]
