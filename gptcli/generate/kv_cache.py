"""The KV cache, and the two ways in which tokens are added to it: prompts (Prefill) and a few tokens a row (Decode).

A row's float32 results do not depend, to the last bit, on what else is computed with it: the shapes that an operation
sees are those of the row alone, or such that the library computes each row in one way (tests/test_cache.py holds it to
that). For that prompts are cut into blocks of queries at fixed positions, and keys are taken in multiples of KEY_BLOCK.

    B rows   T tokens   H query heads   K key/value heads   G = H / K   D head width   N keys   S rows of the cache
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.generate.cpu_attention import PAGE, Bags

QUERY_BLOCK = 32  # also the grain in which a prompt's beginning is shared exactly
KEY_BLOCK = PAGE  # products with a number of keys that is no multiple of 8 end in other code, which rounds otherwise


class KVCache:
    """Keys and values of up to S sequences, so that a token is computed once.

    Rows are independent: `lengths[s]` tokens are held in row s. What lies beyond is stale, but finite.
    """

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config, self.capacity = config, capacity
        heads = (config.num_layers, rows, config.kv_heads)
        N, D = -(-capacity // KEY_BLOCK) * KEY_BLOCK, config.head_size
        # (L, S, K, N, D) both. On a CPU keys lie in memory as bags read them, (..., D, N), and zeros take memory when
        # they are first written to.
        on_cpu = device.type == "cpu"
        keys = torch.zeros(*heads, *((D, N) if on_cpu else (N, D)), dtype=dtype, device=device)
        self.keys = keys.mT if on_cpu else keys
        self.values = torch.zeros(*heads, N, D, dtype=dtype, device=device)
        self.lengths = [0] * rows
        self.bags: tuple[list[list[int]], Bags] | None = None  # of the last decoding step, and the pages it read

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Make row `target` hold the first `tokens` tokens of row `source`."""
        if source != target:
            for held in (self.keys, self.values):
                held[:, target, :, :tokens] = held[:, source, :, :tokens]
        self.lengths[target] = tokens

    def swap(self, one: int, other: int) -> None:
        """Exchange two rows."""
        tokens = max(self.lengths[one], self.lengths[other])
        for held in (self.keys, self.values):
            kept = held[:, one, :, :tokens].clone()
            held[:, one, :, :tokens] = held[:, other, :, :tokens]
            held[:, other, :, :tokens] = kept
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]

    def grown(self, config: ModelConfig, capacity: int) -> KVCache:
        """A cache of at least this capacity with what this one holds."""
        if capacity <= self.capacity:
            return self
        larger = KVCache(config, len(self.lengths), capacity, dtype=self.keys.dtype, device=self.keys.device)
        for row, tokens in enumerate(self.lengths):
            larger.keys[:, row, :, :tokens] = self.keys[:, row, :, :tokens]
            larger.values[:, row, :, :tokens] = self.values[:, row, :, :tokens]
            larger.lengths[row] = tokens
        return larger

    def erase_stale(self, row: int) -> None:
        """Put zeros behind what a row holds, where numbers may not be finite."""
        for held in (self.keys, self.values):
            held[:, row, :, self.lengths[row] :] = 0

    def check(self, row: int, tokens: int) -> None:
        """ValueError unless the row has room for so many more tokens."""
        if self.lengths[row] + tokens > self.capacity:
            raise ValueError(f"{self.lengths[row] + tokens} tokens do not fit a cache of {self.capacity}")


def cache_bytes(config: ModelConfig, rows: int, tokens: int, *, activation_size: int) -> int:
    """Keys and values that writing `rows` texts of `tokens` tokens keeps."""
    places = -(-tokens // KEY_BLOCK) * KEY_BLOCK
    return 2 * activation_size * config.num_layers * rows * config.kv_heads * places * config.head_size


class Prefill:
    """New tokens of several rows laid end to end, (1, sum of counts): no padding passes through the matrices."""

    def __init__(self, cache: KVCache, rows: Sequence[int], counts: Sequence[int]) -> None:
        self.cache, self.rows, self.counts = cache, rows, counts
        for row, count in zip(rows, counts, strict=True):
            cache.check(row, count)
        device = cache.keys.device
        starts = [cache.lengths[row] for row in rows]
        self.positions = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])[None]
        self.positions = self.positions.to(device)
        self.last = torch.tensor(counts).cumsum(0).sub(1).to(device)  # where each row has its last token
        self.hidden = torch.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, device=device).triu(1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:  # noqa: ARG002
        """Store k and v (1, K, T, D) of one layer; q (1, H, T, D) against all that its row holds -> (1, H, T, D)."""
        outputs = []
        begin = 0
        for row, count in zip(self.rows, self.counts, strict=True):
            start, piece = self.cache.lengths[row], slice(begin, begin + count)
            keys, values = self.cache.keys[layer, row], self.cache.values[layer, row]  # (K, capacity, D)
            keys[:, start : start + count] = k[0, :, piece]
            values[:, start : start + count] = v[0, :, piece]
            keys, values = (
                held[:, : start + count].to(q.dtype) for held in (keys, values)
            )  # rounded, as they are held
            outputs.append(self._causal(q[0, :, piece], keys, values, start))
            begin += count
        return torch.cat(outputs, 1)[None]

    def _causal(self, q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """q (H, T, D), of positions start.., against keys (K, N, D) up to each query's own position -> (H, T, D)."""
        H, T, D = q.shape
        K = keys.shape[0]
        scaled = (q * D**-0.5).view(K, H // K, T, D)
        outputs = []
        first = 0
        while first < T:
            end = min(T, (start + first) // QUERY_BLOCK * QUERY_BLOCK + QUERY_BLOCK - start)
            rows, seen = end - first, start + end
            block = scaled[:, :, first:end].reshape(K, -1, D)  # (K, G*rows, D)
            scores = torch.bmm(block, keys[:, :seen].transpose(1, 2)).view(H, rows, seen)
            scores[:, :, seen - rows :] += self.hidden[:rows, :rows]
            weights = scores.softmax(-1).view(K, -1, seen)
            outputs.append(torch.bmm(weights, values[:, :seen]).view(H, rows, D))
            first = end
        return torch.cat(outputs, 1)

    def commit(self) -> None:
        for row, count in zip(self.rows, self.counts, strict=True):
            self.cache.lengths[row] += count


class Decode:
    """T new tokens for each of the first B rows."""

    def __init__(self, cache: KVCache, batch: int, tokens: int) -> None:
        self.cache, self.batch, self.tokens = cache, batch, tokens
        for row in range(batch):
            cache.check(row, tokens)
        device = cache.keys.device
        positions = torch.tensor(cache.lengths[:batch])[:, None] + torch.arange(tokens)  # (B, T)
        self.positions = positions.to(device)
        self.new: tuple[Tensor, Tensor] | None = None  # where those of a single row go, of all layers
        if batch == 1:
            piece = slice(cache.lengths[0], cache.lengths[0] + tokens)
            self.new = cache.keys[:, 0, :, piece], cache.values[:, 0, :, piece]
        else:
            self.row_index = torch.arange(batch, device=device)[:, None]
        longest = max(cache.lengths[:batch]) + tokens
        self.end = -(-longest // KEY_BLOCK) * KEY_BLOCK
        # A token sees the keys up to its own position; later ones are stale, or padding.
        later = torch.arange(self.end) > positions[:, None, :, None]
        self.hidden = torch.where(later, -math.inf, 0.0)  # (B, 1, T, N)
        self.bags: Bags | None = None
        if device.type != "cpu":
            self.hidden = self.hidden.to(device, cache.keys.dtype)
        else:
            self.bags = self._bags()
            heads = cache.config.num_heads if batch * tokens > 1 else 1
            self.hidden = self.hidden.expand(-1, heads, -1, -1).reshape(-1, self.end)  # (B * H * T or 1, N)

    def _bags(self) -> Bags:
        """Those of the step before where the same pages are read, as in most steps."""
        lengths = self.cache.lengths[: self.batch]
        pages = [[(length + number) // PAGE + 1 for number in range(self.tokens)] for length in lengths]
        if self.cache.bags is not None and self.cache.bags[0] == pages:
            return self.cache.bags[1]
        H, K = self.cache.config.num_heads, self.cache.config.kv_heads
        queries = [
            (row, head, number) for row in range(self.batch) for head in range(H) for number in range(self.tokens)
        ]
        bags = Bags(
            self.cache.keys,
            self.cache.values,
            [row * K + head // (H // K) for row, head, _ in queries],
            [pages[row][number] for row, _, number in queries],
        )
        self.cache.bags = pages, bags
        return bags

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:  # noqa: ARG002
        """Store k and v (B, K, T, D) of one layer; q (B, H, T, D) against all that is held so far -> (B, H, T, D)."""
        if self.new is not None:
            self.new[0][layer].copy_(k[0])
            self.new[1][layer].copy_(v[0])
        else:
            for held, new in ((self.cache.keys[layer], k), (self.cache.values[layer], v)):
                held[self.row_index, :, self.positions] = new.transpose(1, 2).to(held.dtype)
        if self.bags:
            return self.bags.attend(layer, q.reshape(-1, q.shape[3]), self.hidden).view_as(q)
        keys, values = (held[layer, : self.batch, :, : self.end] for held in (self.cache.keys, self.cache.values))
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.hidden, enable_gqa=True)

    def commit(self) -> None:
        for row in range(self.batch):
            self.cache.lengths[row] += self.tokens
