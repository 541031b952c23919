"""Answers in words against the right ones: exact match and token F1 of SQuAD (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

NORMALISATION = "lower case, without ASCII punctuation and the articles a, an, the; runs of white space are one space"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return the text as SQuAD compares it; see NORMALISATION."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 where the normalised answer is one of the normalised references, else 0."""
    return float(normalise(answer) in map(normalise, references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the F1 of words shared with the best reference; where either has no words, 1 if both have none, else 0."""
    return max(_f1(normalise(answer).split(), normalise(reference).split()) for reference in references)


def _f1(words: list[str], others: list[str]) -> float:
    if not words or not others:
        return float(words == others)
    shared = sum((Counter(words) & Counter(others)).values())
    return 2 * shared / (len(words) + len(others))
