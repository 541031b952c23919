"""Rows of a KV cache that texts are written in, and what each still holds when its text is done.

The rows in use are always the first ones. A row that is free keeps its tokens until it is needed, so that a prompt that
begins like a text of before is computed from where they part.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.generate.kv_cache import QUERY_BLOCK, KVCache


@dataclass
class Held:
    """The tokens of a row of the cache. The first `exact` have the bits that a prompt computed from its start has:
    those drawn one by one, and all that comes after such, may be rounded otherwise."""

    ids: list[int] = field(default_factory=list)
    exact: int = 0
    last_run: int = 0
    last_use: int = 0
    prompt_logits: Tensor | None = None  # (V,), after the first `exact` of ids


class Slots:
    """The cache's rows with what they hold."""

    def __init__(self, config: ModelConfig, count: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.cache = KVCache(config, count, 0, dtype=dtype, device=device)
        self.held = [Held() for _ in range(count)]
        self.run = self.clock = 0

    def begin_run(self, capacity: int) -> None:
        """All rows are free; each can hold `capacity` tokens."""
        self.run += 1
        self.cache = self.cache.grown(self.config, capacity)

    def place(self, window: list[int], active: int) -> tuple[int, Tensor | None]:
        """Make row `active`, the first free one, hold the longest beginning of `window` that some row holds.

        -> (number of those tokens, logits (V,) after the last of the window where all of it is there).
        Within a run only exact tokens are shared, so that a text does not depend on what was written before it.
        """
        shares = [self._share(held, window) for held in self.held]
        source = max(range(len(shares)), key=lambda row: (shares[row], row >= active))
        share, held = shares[source], self.held[source]
        target = source
        if source < active or share < len(held.ids):  # leave it to whoever goes on with it
            target = min(
                range(active, len(shares)), key=lambda row: (len(self.held[row].ids) > 0, self.held[row].last_use)
            )
        self.cache.copy(source, target, share)
        whole = held.prompt_logits if share == len(window) else None
        self.held[target] = Held(window[:share], min(share, held.exact), self.run, 0, whole)
        self.swap(target, active)
        return share, whole

    def _share(self, held: Held, window: list[int]) -> int:
        """How many of the first tokens of `window` can be taken from `held`."""
        common = common_length(held.ids, window)
        if common == len(window) == held.exact and held.prompt_logits is not None:
            return common
        common = min(common, len(window) - 1)  # the last one's logits are needed
        return common if held.last_run != self.run else min(common, held.exact) // QUERY_BLOCK * QUERY_BLOCK

    def filled(self, row: int, window: list[int], logits: Tensor) -> None:
        """The row holds all of `window` now, with these logits (V,) after it."""
        held = self.held[row]
        if held.exact == len(held.ids) and held.exact % QUERY_BLOCK == 0:
            held.exact, held.prompt_logits = len(window), logits.clone()
        held.ids = list(window)

    def advance(self, row: int, token: int, tokens: int) -> None:
        """The row holds one more token, `tokens` in all; what it was given beyond that does not count."""
        self.held[row].ids.append(token)
        self.cache.lengths[row] = tokens

    def make_room(self, row: int, tokens: int) -> None:
        """The row holds so little that so many more fit behind it."""
        held, most = self.held[row], min(self.cache.capacity, self.config.context_length) - tokens
        if self.cache.lengths[row] > most:
            self.cache.lengths[row] = most
            held.ids, held.exact, held.prompt_logits = held.ids[:most], min(held.exact, most), None

    def swap(self, one: int, other: int) -> None:
        """Exchange two rows."""
        if one != other:
            self.cache.swap(one, other)
            self.held[one], self.held[other] = self.held[other], self.held[one]

    def release(self, row: int) -> None:
        """The row is free; remember when."""
        self.clock += 1
        self.held[row].last_use = self.clock


def common_length(one: list[int], other: list[int]) -> int:
    """Length of the longest common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare in C: halving beats a loop over tokens
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
