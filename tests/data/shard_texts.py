"""Texts and prepared directories for tests."""

import json
import random
from pathlib import Path

from hypothesis import settings

from gptcli.data.shards import TokenArray
from gptcli.data.tokenizer import Tokenizer

SOME = settings(max_examples=100, deadline=None)
WORDS = ["river", "stone", "garden", "winter", "letter", "captain", "market", "window", "bridge", "song"]


def english(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice([" ", " ", " ", ".\n"]) for _ in range(words))


def text_of(directory: Path, tokenizer: Tokenizer, split: str) -> str:
    tokens = TokenArray(directory, split)
    ids = [int(token) for token in tokens.read(0, len(tokens)) if token != tokenizer.end_of_text]
    return tokenizer.decode(ids)


def records(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"text": english(number, 15)}) + "\n" for number in range(count)))
    return path
