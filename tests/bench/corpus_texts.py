"""Texts for corpus.py: real words, drawn by a seed, of which it is known what repeats what."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import harness
import numpy as np

from gptcli.data.python_english import documents


def pieces(words: int = 300) -> list[str]:
    """Return Python's own English in pieces of about so many words."""
    found = []
    for text in documents():
        parts = text.split(" ")
        found += [" ".join(parts[start : start + words]) for start in range(0, len(parts), words)]
    return [piece for piece in found if len(piece) > 400]


def shuffled_words(draw: random.Random, base: list[str], megabytes: float) -> list[str]:
    """Return texts of real words that have nothing in common: half of the words of a real one are others'."""
    vocabulary = vocabulary_of(base)
    found, size = [], 0
    while size < megabytes * 1e6:
        words = draw.choice(base).split(" ")
        found.append(" ".join(draw.choice(vocabulary) if draw.random() < 0.5 else word for word in words))
        size += len(found[-1])
    return found


def shingle_set(text: str) -> set[tuple[str, ...]]:
    """Return the 5-word shingles of a text, as users think of them."""
    words = text.lower().split()
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}


def jaccard(one: str, other: str) -> float:
    """Return the exact similarity of two texts."""
    a, b = shingle_set(one), shingle_set(other)
    return len(a & b) / max(1, len(a | b))


def write(path: Path, texts: list[str]) -> Path:
    """Write texts as JSONL, with their numbers as ids."""
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


def say(name: str, value: str) -> None:
    """Print a line of the table."""
    print(f"| {name} | {value} |", flush=True)


def vocabulary_of(base: list[str]) -> list[str]:
    """Return the different words of some texts, sorted."""
    return sorted({word for text in base for word in text.split() if word.isalpha()})


def generated(megabytes: float, seed: int = 0, words: int = 320) -> Iterator[str]:
    """Yield texts of drawn words, quickly; one in twenty is an earlier one with a word in fifty changed."""
    draw, vocabulary = np.random.default_rng(seed), np.array(vocabulary_of(pieces()), object)
    recent: list[np.ndarray] = []
    size = 0
    while size < megabytes * 1e6:
        if len(recent) == 1000 and draw.random() < 0.05:
            chosen = recent[draw.integers(1000)].copy()
            places = draw.integers(0, len(chosen), len(chosen) // 50)
            chosen[places] = draw.integers(0, len(vocabulary), len(places))
        else:
            chosen = draw.integers(0, len(vocabulary), draw.integers(words // 2, words * 2))
            recent = [*recent[-999:], chosen]
        text = " ".join(vocabulary[chosen].tolist())
        size += len(text)
        yield text


MEASURE = "import dataclasses, harness, json, sys; print(json.dumps(dataclasses.asdict(harness.run(sys.argv[1:]))))"


def measured(command: Sequence[str | Path]) -> harness.Finished:
    """Run a command from a small process: Linux counts the memory of the process that starts one as its own."""
    done = harness.run([sys.executable, "-c", MEASURE, *command], cwd=harness.BENCH)
    return harness.Finished(**json.loads(done.stdout))
