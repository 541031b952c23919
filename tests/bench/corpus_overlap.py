"""Items of evaluation sets: for corpus.py."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from corpus_texts import pieces, say, shuffled_words, vocabulary_of

from gptcli.data.filters.overlap import Item, build_index, find_items, self_test


def overlap(megabytes: float, _peers: str | None, _work: Path) -> None:
    """Plant items of an evaluation set in real text, verbatim, re-wrapped and edited; clean text beside it."""
    draw = random.Random(23)
    base = pieces(120)
    draw.shuffle(base)
    items, clean = base[:400], base[400:]
    items = [" ".join(text.split()[: draw.randint(14, 60)]) for text in items]
    vocabulary = vocabulary_of(base)
    index = build_index([Item(str(n), (text,)) for n, text in enumerate(items)])
    say("self-test: items put into other text and found", str(self_test(index, 0.4)))

    def found(changed: Callable[[str], str]) -> float:
        texts = [f"{draw.choice(clean)}\n{changed(item)}\n{draw.choice(clean)}" for item in items]
        hits = find_items(texts, index, 0.4)
        return sum(number in {hit.item for hit in hits[number]} for number in range(len(items))) / len(items)

    def edited(text: str) -> str:
        words = text.split()
        return " ".join(draw.choice(vocabulary) if draw.random() < 0.05 else word for word in words)

    def wrapped(text: str) -> str:
        words = text.upper().split()
        return "\n".join(" ".join(words[start : start + 8]) for start in range(0, len(words), 8))

    say(
        "items of 14 to 60 words: verbatim, re-wrapped, 5 % of the words changed",
        f"{found(str):.4f}, {found(wrapped):.4f}, {found(edited):.4f}",
    )
    texts = shuffled_words(draw, clean, megabytes)
    began = time.process_time()
    hits = [hits for start in range(0, len(texts), 500) for hits in find_items(texts[start : start + 500], index, 0.4)]
    speed = sum(map(len, texts)) / 1e6 / (time.process_time() - began)
    say("clean documents with a hit", f"{sum(map(bool, hits))} of {len(texts):,}; {speed:.1f} MB/s of CPU time")
    real = [hits for hits in find_items(clean, index, 0.4) if hits]
    say("other pieces of the same documentation with a hit (it repeats itself)", f"{len(real)} of {len(clean):,}")
