"""Logits and the numbers of a key -> the next token, in the time of a draw by chance.

The token with the least -log u / p is drawn (see watermark.py), where 1 - u is its number's middle. As -log u is at
least 1 - u, a race by (1 - u) / p over all tokens, in float32, leaves a few that can win, one as a rule. Those are
compared exactly.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from gptcli.config.generate import GenerateOptions
from gptcli.generate.sampling import Ids, Logits, Weights, candidates, top_unordered
from gptcli.generate.watermark import Numbers

MARGIN = 1e-4  # of logarithms, more than what float32 rounds away
COLDEST = 1e-3  # temperature by which float32 is divided
PARTS = 32 * math.log(2)  # logarithm of how many numbers there are


def draw_by_key(logits: Logits, options: GenerateOptions, numbers: Numbers) -> int:
    """Return the token with the least -log u / p of logits (V,), for the u that a key gives.

    Over all keys a token comes with the probability that `draw` gives it.
    """
    ids, logs = _logs(logits, options)
    tokens = vocabulary(len(logits)) if ids is None else ids.astype(np.uint32)
    race = numbers.all(tokens).astype(np.float32)
    race += 0.5
    np.log(race, out=race)
    race -= logs

    def exactly(index: int) -> float:
        """Return log(-log u / p), up to what all have in common."""
        number = numbers.one(index if ids is None else int(ids[index]))
        return math.log(-math.log1p(-(number + 0.5) / 2**32)) - float(logs[index])

    winner = int(race.argmin())
    can_win = race <= exactly(winner) + (PARTS + MARGIN)
    if np.count_nonzero(can_win) > 1:
        winner = min(can_win.nonzero()[0].tolist(), key=exactly)
    return winner if ids is None else int(ids[winner])


@functools.lru_cache(maxsize=4)
def vocabulary(count: int) -> NDArray[np.uint32]:
    """Return all tokens of a vocabulary."""
    return np.arange(count, dtype=np.uint32)


def _logs(logits: Logits, options: GenerateOptions) -> tuple[Ids | None, Logits | Weights]:
    """Return ids, None for all in their order, and the logarithm of p of each up to what all have in common."""
    if options.top_p < 1.0 or options.min_p or options.temperature < COLDEST:
        ids, weights = candidates(logits, options)
        possible = weights.nonzero()[0]
        return possible if ids is None else ids[possible], np.log(weights[possible])
    ids = None
    if options.top_k is not None and options.top_k < len(logits):
        ids = top_unordered(logits, options.top_k)
        if len(ids) > options.top_k:  # of equal ones the lower ids
            ids = ids[np.argsort(-logits[ids], kind="stable")[: options.top_k]]
        logits = logits[ids]
    return ids, logits if options.temperature == 1.0 else logits / np.float32(options.temperature)
