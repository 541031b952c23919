"""Rows of a KV cache that texts are written in, and the tokens that each still holds when its text is done.

The rows in use are always the first ones. A free row keeps its tokens until it is needed, so that a prompt that begins
like an earlier text is computed only from where they part.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.generate.kv_cache import QUERY_BLOCK, KVCache


@dataclass
class RowState:
    """The tokens of a row of the cache.

    The first `deterministic_prefix` have the bits that a prompt computed from its start has; those drawn one by one,
    and all that come after such, may be rounded otherwise.
    """

    ids: list[int] = field(default_factory=list)
    deterministic_prefix: int = 0
    owner: str = ""
    last_run: int = 0
    last_use: int = 0
    prompt_logits: Tensor | None = None  # (V,), after the deterministic prefix


class PrefixCache:
    """The rows of a KV cache with the tokens that each holds."""

    def __init__(self, config: ModelConfig, count: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.cache = KVCache(config, count, 0, dtype=dtype, device=device)
        self.rows = [RowState() for _ in range(count)]
        self.run = self.clock = 0

    def begin_run(self) -> None:
        """Free all rows. Texts of earlier runs are shared from now on whole, not only their deterministic prefix."""
        self.run += 1

    def grow(self, capacity: int) -> None:
        """Let each row hold at least `capacity` tokens."""
        self.cache = self.cache.grown(self.config, capacity)

    def place(
        self, window: list[int], active: int, *, owner: str = "", share: bool = True
    ) -> tuple[int, Tensor | None]:
        """Make row `active`, the first free one, hold the longest beginning of `window` that some row of the owner has.

        -> (number of those tokens, logits (V,) after the last of the window where all of it is there).
        Within a run only the deterministic prefix is shared, so that a text does not depend on what was written before
        it. Without `share` nothing is.
        """
        shares = [self._share(row, window) if share and row.owner == owner else 0 for row in self.rows]
        source = max(range(len(shares)), key=lambda row: (shares[row], row >= active))
        common, state = shares[source], self.rows[source]
        target = source
        if source < active or common < len(state.ids):  # leave it to whoever goes on with it
            target = self._oldest(active)
        self.cache.copy(source, target, common)
        logits = state.prompt_logits if common == len(window) else None
        exact = min(common, state.deterministic_prefix)
        self.rows[target] = RowState(window[:common], exact, owner, self.run, 0, logits)
        self.swap(target, active)
        return common, logits

    def make_way(self) -> None:
        """Put the text of the first row, while no row is in use, where the oldest text is."""
        if self.rows[0].ids:
            self.swap(0, self._oldest(0))

    def _oldest(self, first: int) -> int:
        """Return the row, from `first` on, that is empty or was used longest ago."""
        return min(range(first, len(self.rows)), key=lambda row: (len(self.rows[row].ids) > 0, self.rows[row].last_use))

    def _share(self, row: RowState, window: list[int]) -> int:
        """Return how many of the first tokens of `window` can be taken from a row."""
        common = common_length(row.ids, window)
        if common == len(window) == row.deterministic_prefix and row.prompt_logits is not None:
            return common
        common = min(common, len(window) - 1)  # the last one's logits are needed
        if row.last_run != self.run:
            return common
        return min(common, row.deterministic_prefix) // QUERY_BLOCK * QUERY_BLOCK

    def extend(self, row: int, ids: list[int], logits: Tensor | None) -> None:
        """Note that more tokens of a prompt were computed; `logits` (V,) after the last of it."""
        state = self.rows[row]
        exact = state.deterministic_prefix == len(state.ids) and len(state.ids) % QUERY_BLOCK == 0
        state.ids += ids
        if exact:
            state.deterministic_prefix = len(state.ids)
            state.prompt_logits = None if logits is None else logits.clone()

    def advance(self, row: int, token: int, tokens: int) -> None:
        """Note that the row holds one more token, `tokens` in all; what it was given beyond that does not count."""
        self.rows[row].ids.append(token)
        self.cache.lengths[row] = tokens

    def make_room(self, row: int, tokens: int) -> None:
        """Cut a free row so that `tokens` more fit behind what it holds."""
        state, most = self.rows[row], min(self.cache.capacity, self.config.context_length) - tokens
        if self.cache.lengths[row] > most:
            self.cache.lengths[row] = most
            state.ids, state.prompt_logits = state.ids[:most], None
            state.deterministic_prefix = min(state.deterministic_prefix, most)

    def swap(self, one: int, other: int) -> None:
        """Swap two rows."""
        if one != other:
            self.cache.swap(one, other)
            self.rows[one], self.rows[other] = self.rows[other], self.rows[one]

    def release(self, row: int) -> None:
        """Mark a row as free, last used now."""
        self.clock += 1
        self.rows[row].last_use = self.clock

    def erase(self, row: int) -> None:
        """Forget what a row holds: numbers that are not finite would spoil the next text in it."""
        self.cache.lengths[row] = 0
        self.cache.erase_stale(row)
        self.rows[row] = RowState()


def common_length(one: list[int], other: list[int]) -> int:
    """Return the length of the longest common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare in C: halving beats a loop over tokens
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
