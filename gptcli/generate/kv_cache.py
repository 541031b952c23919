"""The KV cache, and the two ways in which tokens are added to it: prompts (Prefill) and a few tokens a row (Decode).

A row's float32 results do not depend, to the last bit, on what else is computed with it: the shapes that an operation
sees are those of the row alone, or such that the library computes each row in one way
(tests/generate/test_kv_cache.py holds it to that). For that prompts are cut into blocks of queries at fixed
positions, and keys are taken in multiples of KEY_BLOCK.

    B rows   T tokens   H query heads   K key/value heads   G = H / K   D head width   N keys   S rows of the cache
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.device.machine import device_memory_bytes
from gptcli.device.runtime import Runtime
from gptcli.generate.cpu_attention import PAGE, Bags
from gptcli.model.attention import PLAIN, AttentionRule, ruled_attention
from gptcli.model.bigrams import NO_TOKEN

QUERY_BLOCK = 32  # also the grain in which a prompt's beginning is shared exactly
MAX_ROWS, CACHE_SHARE = 64, 0.25  # the default number of rows, and the share of the memory that they may take
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
        # (L, S, K, N, D) both. On a CPU keys lie in memory as bags read them, (..., D, N). All zeros at once: a first
        # touch here and there, row by row, takes several times as long.
        on_cpu = device.type == "cpu"
        keys = torch.zeros(*heads, *((D, N) if on_cpu else (N, D)), dtype=dtype, device=device)
        self.keys = keys.mT if on_cpu else keys
        self.values = torch.zeros(*heads, N, D, dtype=dtype, device=device)
        # Of a model that reads the token before each, the tokens themselves, (S, N).
        self.ids = torch.zeros(rows, N, dtype=torch.long, device=device) if config.bigram_rows else None
        self.lengths = [0] * rows
        self.bags: tuple[list[list[int]], Bags] | None = None  # of the last decoding step, and the pages it read

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Make row `target` hold the first `tokens` tokens of row `source`."""
        if source != target:
            for held in (self.keys, self.values):
                held[:, target, :, :tokens] = held[:, source, :, :tokens]
            if self.ids is not None:
                self.ids[target, :tokens] = self.ids[source, :tokens]
        self.lengths[target] = tokens

    def swap(self, one: int, other: int) -> None:
        """Swap two rows."""
        tokens = max(self.lengths[one], self.lengths[other])
        for held in (self.keys, self.values):
            kept = held[:, one, :, :tokens].clone()
            held[:, one, :, :tokens] = held[:, other, :, :tokens]
            held[:, other, :, :tokens] = kept
        if self.ids is not None:
            self.ids[[one, other]] = self.ids[[other, one]]
        self.lengths[one], self.lengths[other] = self.lengths[other], self.lengths[one]

    def grown(self, config: ModelConfig, capacity: int) -> KVCache:
        """Return a cache of at least this capacity with what this one holds."""
        if capacity <= self.capacity:
            return self
        larger = KVCache(config, len(self.lengths), capacity, dtype=self.keys.dtype, device=self.keys.device)
        for row, tokens in enumerate(self.lengths):
            larger.keys[:, row, :, :tokens] = self.keys[:, row, :, :tokens]
            larger.values[:, row, :, :tokens] = self.values[:, row, :, :tokens]
            if larger.ids is not None and self.ids is not None:
                larger.ids[row, :tokens] = self.ids[row, :tokens]
            larger.lengths[row] = tokens
        return larger

    def append(self, layer: int, places: Places, k: Tensor, v: Tensor) -> None:
        """Store the keys and values (B, K, T, D) of a layer; the tokens of B and T lie one after another in places."""
        if places.views is not None:
            places.views[0][layer].copy_(k[0])
            places.views[1][layer].copy_(v[0])
            return
        for held, new in ((self.keys[layer], k), (self.values[layer], v)):
            held[places.rows, :, places.positions] = new.transpose(1, 2).flatten(0, 1).to(held.dtype)

    def erase_stale(self, row: int) -> None:
        """Put zeros behind what a row holds, where numbers may not be finite."""
        for held in (self.keys, self.values):
            held[:, row, :, self.lengths[row] :] = 0

    def check(self, row: int, tokens: int) -> None:
        """Raise ValueError unless the row has room for `tokens` more."""
        if self.lengths[row] + tokens > self.capacity:
            raise ValueError(f"{self.lengths[row] + tokens} tokens do not fit a cache of {self.capacity}")


def cache_bytes(config: ModelConfig, rows: int, tokens: int, *, activation_size: int) -> int:
    """Return the bytes of the keys and values of `rows` texts of `tokens` tokens."""
    places = _whole_blocks(tokens)
    return 2 * activation_size * config.num_layers * rows * config.kv_heads * places * config.head_size


def rows_that_fit(config: ModelConfig, runtime: Runtime) -> int:
    """Return the number of texts, from 1 to MAX_ROWS, whose whole contexts fit into a share of the device's memory."""
    row = cache_bytes(config, 1, config.context_length, activation_size=runtime.cache_dtype.itemsize)
    return max(1, min(MAX_ROWS, int(device_memory_bytes(runtime.device) * CACHE_SHARE / row)))


@dataclass(frozen=True)
class Places:
    """The places of new tokens in a cache: by row and position, (N,) each; those of one row also as views of each
    layer, (K, N, D), which take less time to write to."""

    rows: Tensor
    positions: Tensor
    views: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None


class CacheLayout:
    """New tokens of some rows of a cache, so many behind what each holds: in every layer their keys and values are
    stored, and then their queries meet all that their rows hold, as a subclass says by `attention`."""

    positions: Tensor  # (B, T), on the device

    def __init__(self, cache: KVCache, rows: Sequence[int], counts: Sequence[int]) -> None:
        for row, count in zip(rows, counts, strict=True):
            cache.check(row, count)
        self.cache, self.rows, self.counts = cache, rows, counts
        if len(rows) == 1:
            piece = slice(cache.lengths[rows[0]], cache.lengths[rows[0]] + counts[0])
            views = cache.keys[:, rows[0], :, piece].unbind(), cache.values[:, rows[0], :, piece].unbind()
            index = torch.full((counts[0],), rows[0]), torch.arange(piece.start, piece.stop)
        else:
            views, sizes = None, torch.tensor(counts)
            behind = torch.tensor([cache.lengths[row] for row in rows]) - (sizes.cumsum(0) - sizes)
            number = torch.arange(int(sizes.sum()))
            index = torch.tensor(rows).repeat_interleave(sizes), number + behind.repeat_interleave(sizes)
        device = cache.keys.device
        self.places = Places(index[0].to(device), index[1].to(device), views)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """Store k and v (B, K, T, D), then compute attention of q (B, H, T, D) -> (B, H, T, D)."""
        self.cache.append(layer, self.places, k, v)
        return self.attention(layer, q, rule)

    def attention(self, layer: int, q: Tensor, rule: AttentionRule) -> Tensor:
        """Compute attention of q (B, H, T, D) to the stored keys and values -> (B, H, T, D)."""
        raise NotImplementedError

    def previous(self, ids: Tensor) -> Tensor:
        """Return the token before each new one of ids (B, T), NO_TOKEN at the beginning of a row; ids are stored."""
        held, rows, positions = self.cache.ids, self.places.rows, self.places.positions
        assert held is not None
        held[rows, positions] = ids.flatten()
        return torch.where(positions == 0, NO_TOKEN, held[rows, (positions - 1).clamp_min(0)]).view_as(ids)

    def commit(self) -> None:
        """Count the new tokens as held."""
        for row, count in zip(self.rows, self.counts, strict=True):
            self.cache.lengths[row] += count


class Prefill(CacheLayout):
    """New tokens of several rows laid end to end, (1, sum of counts): no padding passes through the matrices."""

    def __init__(self, cache: KVCache, rows: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__(cache, rows, counts)
        self.positions = self.places.positions[None]
        self.last = torch.tensor(counts).cumsum(0).sub(1).to(self.positions.device)  # of each row, its last token
        self.hidden = torch.full((QUERY_BLOCK, QUERY_BLOCK), -math.inf, device=self.positions.device).triu(1)

    def attention(self, layer: int, q: Tensor, rule: AttentionRule) -> Tensor:
        outputs = []
        begin = 0
        for row, count in zip(self.rows, self.counts, strict=True):
            start = self.cache.lengths[row]
            keys, values = (
                held[layer, row, :, : start + count].to(q.dtype) for held in (self.cache.keys, self.cache.values)
            )  # rounded, as they are held
            outputs.append(
                self._causal(q[0, :, begin : begin + count], keys, values, start, rule.within(start + count))
            )
            begin += count
        return torch.cat(outputs, 1)[None]

    def _causal(self, q: Tensor, keys: Tensor, values: Tensor, start: int, rule: AttentionRule) -> Tensor:
        """Compute attention of q (H, T, D), from position `start` on, to keys and values (K, N, D) -> (H, T, D)."""
        H, T, D = q.shape
        K = keys.shape[0]
        scaled = (q * D**-0.5).view(K, H // K, T, D)
        outputs = []
        first = 0
        while first < T:
            end = min(T, (start + first) // QUERY_BLOCK * QUERY_BLOCK + QUERY_BLOCK - start)
            rows, seen = end - first, start + end
            block = scaled[:, :, first:end].reshape(K, -1, D)  # (K, G*rows, D)
            scores = rule.cap(torch.bmm(block, keys[:, :seen].transpose(1, 2)).view(H, rows, seen))
            if rule.window is None and not rule.alibi:
                scores[:, :, seen - rows :] += self.hidden[:rows, :rows]
            else:
                places = torch.arange(seen, device=q.device)
                scores = scores + rule.bias(places[seen - rows :], places, H)
            weights = scores.softmax(-1).view(K, -1, seen)
            outputs.append(torch.bmm(weights, values[:, :seen]).view(H, rows, D))
            first = end
        return torch.cat(outputs, 1)


def decode_layout(cache: KVCache, batch: int, tokens: int) -> CacheLayout:
    """Return the layout of T new tokens for each of the first B rows."""
    return Decode(cache, batch, tokens) if cache.keys.device.type == "cpu" else DeviceDecode(cache, batch, tokens)


class Decode(CacheLayout):
    """T new tokens for each of the first B rows, on a CPU."""

    def __init__(self, cache: KVCache, batch: int, tokens: int) -> None:
        super().__init__(cache, range(batch), [tokens] * batch)
        self.batch, self.tokens = batch, tokens
        self.positions = self.places.positions.view(batch, tokens)
        self.end = _whole_blocks(max(cache.lengths[:batch]) + tokens)
        self.biases: dict[AttentionRule, Tensor] = {}
        self.bags = self._bags()

    def bias(self, rule: AttentionRule) -> Tensor:
        """Return what is added to the scores, (B * H * T, N) or one row for all: a token sees the keys up to its own
        position, later ones are stale, or padding."""
        if rule not in self.biases:
            H, here = self.cache.config.num_heads, rule.within(self.end)
            bias = here.bias(self.positions, torch.arange(self.end), H)  # (B, 1 or H, T, N)
            one = self.batch * self.tokens == 1 and not here.alibi
            self.biases[rule] = bias.expand(-1, 1 if one else H, -1, -1).reshape(-1, self.end)
        return self.biases[rule]

    def _bags(self) -> Bags:
        """Return the bags of the step before where the same pages are read, as in most steps."""
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

    def attention(self, layer: int, q: Tensor, rule: AttentionRule) -> Tensor:
        return self.bags.attend(layer, q.reshape(-1, q.shape[3]), self.bias(rule), cap=rule.softcap).view_as(q)


class DeviceDecode(CacheLayout):
    """T new tokens for each of the first B rows against the first `end` places of each, on any device.

    What depends on the positions is computed from the tensor that holds them, so that a CUDA graph can move them on.
    """

    def __init__(self, cache: KVCache, batch: int, tokens: int, *, end: int | None = None) -> None:
        super().__init__(cache, range(batch), [tokens] * batch)
        self.places = dataclasses.replace(self.places, views=None)  # which do not move on
        self.positions = self.places.positions.view(batch, tokens)
        self.batch, self.end = batch, end or _whole_blocks(max(cache.lengths[:batch]) + tokens)
        self.keys_at = torch.arange(self.end, device=self.positions.device)
        self.seen = self.keys_at <= self.positions[:, None, :, None]  # (B, 1, T, N)

    def look(self) -> None:
        """Update the mask of visible keys from the current positions."""
        torch.le(self.keys_at, self.positions[:, None, :, None], out=self.seen)

    def attention(self, layer: int, q: Tensor, rule: AttentionRule) -> Tensor:
        keys, values = (held[layer, : self.batch, :, : self.end] for held in (self.cache.keys, self.cache.values))
        if rule == PLAIN:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.seen, enable_gqa=True)
        return ruled_attention(q, keys, values, rule.bias(self.positions, self.keys_at, q.shape[1]), rule=rule)


def _whole_blocks(tokens: int) -> int:
    return -(-tokens // KEY_BLOCK) * KEY_BLOCK
