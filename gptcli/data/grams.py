"""Runs of so many tokens as hashes, to find them again in a training text of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptcli.data.shards import TokenArray

BLOCK_TOKENS = 1 << 20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = NDArray[np.uint64]


def run_hashes(ids: NDArray[np.int64], size: int) -> Hashes:
    """Return a hash of each run of `size` ids: a polynomial modulo 2^64, mixed. Empty where there are fewer."""
    width = len(ids) - size + 1
    if width <= 0:
        return np.zeros(0, dtype=np.uint64)
    hashed = np.zeros(width, dtype=np.uint64)
    given = ids.astype(np.uint64) + np.uint64(1)
    for place in range(size):
        hashed = hashed * _FACTOR + given[place : place + width]
    hashed ^= hashed >> np.uint64(29)
    return hashed * _FACTOR


def training_runs(prepared: Path, size: int) -> Hashes:
    """Return the hashes of all runs of `size` tokens of a training split, sorted: 8 bytes for each token."""
    tokens = TokenArray(prepared, "train")
    parts = [
        run_hashes(tokens.read(start, BLOCK_TOKENS + size - 1), size) for start in range(0, len(tokens), BLOCK_TOKENS)
    ]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64)
