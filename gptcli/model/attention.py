"""Attention by the device: for whole windows, and for sequences packed end to end (kv_cache has that of a KV cache)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.device.private_torch import softmax_backward_data, tanh_backward
from gptcli.model.bigrams import NO_TOKEN
from gptcli.model.dropout import mask

QUERY_BLOCK = 128  # the fastest of 64 to 512 in trials with windows of 256 to 2,048 tokens


@dataclass(frozen=True)
class AttentionRule:
    """The rule of a layer's attention beside the formula, the same in training, for packed sequences, with a cache."""

    window: int | None = None  # tokens that a token sees, itself among them
    softcap: float = 0.0  # scores = cap x tanh(scores / cap)
    alibi: bool = False  # scores fall with the distance, by a slope of each head (Press et al. 2022)

    def within(self, tokens: int) -> AttentionRule:
        """Return the rule for sequences of so many tokens, in which a wide window hides nothing."""
        return self if self.window is None or tokens > self.window else dataclasses.replace(self, window=None)

    def first_key(self, query: int) -> int:
        """Return the first position that a token at position `query` sees."""
        return 0 if self.window is None else max(0, query - self.window + 1)

    def bias(self, queries: Tensor, keys: Tensor, heads: int) -> Tensor:
        """Return what is added to the scores of queries at positions (..., T) and keys at positions (N,), float32 in
        the shape (..., 1, T, N), of ALiBi (..., H, T, N); -inf hides a key."""
        distance = queries[..., None, :, None] - keys  # (..., 1, T, N)
        hidden = distance < 0 if self.window is None else (distance < 0) | (distance >= self.window)
        if not self.alibi:
            return torch.where(hidden, -math.inf, 0.0)
        slopes = torch.tensor(alibi_slopes(heads), device=distance.device)[:, None, None]
        return torch.where(hidden, -math.inf, -slopes * distance)

    def cap(self, scores: Tensor) -> Tensor:
        """Return the scores, soft-capped where the rule says so."""
        return self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores


PLAIN = AttentionRule()


def alibi_slopes(heads: int) -> list[float]:
    """Return the slope of each head: a geometric sequence for a power of two, and between its steps for the rest."""
    whole = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / whole) for head in range(whole)]
    return slopes + [2.0 ** (-4 * (2 * head + 1) / whole) for head in range(heads - whole)]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, rule: AttentionRule = PLAIN, dropout: float = 0.0) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v, where a token sees itself and those before it, as far as the rule lets it.

    q (B, H, T, D), k and v (B, K, T, D), H a multiple of K -> (B, H, T, D).
    On a CPU, blocks of queries against the keys they may see, which takes less time than PyTorch's fused CPU kernel
    forward and backward.
    """
    grouped = q.shape[1] != k.shape[1]
    B, H, T, D = q.shape
    rule = rule.within(T)
    if q.device.type != "cpu":
        if rule == PLAIN:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped)
        positions = torch.arange(T, device=q.device)
        return ruled_attention(q, k, v, rule.bias(positions, positions, H), rule=rule, dropout=dropout)
    if grouped:
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
    flat = (heads.transpose(0, 1).reshape(H * B, T, D) for heads in (q, k, v))  # model.Attention has them in this order
    y: Tensor = _CausalAttention.apply(*flat, H, rule, dropout)  # type: ignore[no-untyped-call]
    return y.view(H, B, T, D).transpose(0, 1)


def ruled_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, rule: AttentionRule, dropout: float = 0.0
) -> Tensor:
    """Compute attention of q (B, H, T, D) to k and v (B, K, N, D) with a bias (..., 1 or H, T, N) -> (B, H, T, D)."""
    if not rule.softcap:
        mask = bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=True)
    k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
    scores = rule.cap(q @ k.mT * q.shape[-1] ** -0.5) + bias.to(q.dtype)
    weights = scores.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ v


class _CausalAttention(torch.autograd.Function):
    """q, k, v (N, T, D), N = H x B -> (N, T, D), by blocks of queries. Kept are the weights of every block, dropout's
    masks and what tanh gave.

    Autograd's own backward pass would fill and add a tensor of full size for every slice.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, rule: AttentionRule, dropout: float) -> Tensor:
        N, T, D = q.shape
        later = torch.full((min(T, QUERY_BLOCK),) * 2, float("-inf"), dtype=q.dtype).triu(1)
        y, kept = [], []
        for start in range(0, T, QUERY_BLOCK):
            first, end = rule.first_key(start), min(start + QUERY_BLOCK, T)
            scores = q.new_empty(N, end - start, end - first)
            scores.baddbmm_(q[:, start:end], k[:, first:end].mT, beta=0, alpha=D**-0.5)
            if rule.softcap:
                kept.append(scores.div_(rule.softcap).tanh_())
                scores = scores * rule.softcap
            if rule.window is None and not rule.alibi:
                scores[:, :, start:].add_(later[: end - start, : end - start])
            else:
                bias = rule.bias(torch.arange(start, end), torch.arange(first, end), heads)  # (1 or H, T, N)
                scores.view(heads, -1, *scores.shape[1:]).add_(bias[:, None])
            weights = scores.softmax(-1)
            kept.append(weights)
            if dropout:
                kept.append(mask(weights, dropout))
                weights = weights * kept[-1]
            y.append(torch.bmm(weights, v[:, first:end]))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.rule, ctx.dropout = rule, dropout
        return torch.cat(y, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        q, k, v, *kept = ctx.saved_tensors
        T, D = q.shape[1:]
        dq: list[Tensor] = []
        dk = dv = None
        unused = q.new_empty(())  # added to a product zero times
        for start in reversed(range(0, T, QUERY_BLOCK)):  # without a window the last block has something of every key
            first, end = ctx.rule.first_key(start), min(start + QUERY_BLOCK, T)
            dropped_by = kept.pop() if ctx.dropout else None
            weights, dy_block, q_block = kept.pop(), dy[:, start:end], q[:, start:end]
            d_weights = torch.bmm(dy_block, v[:, first:end].mT)
            dropped = weights
            if dropped_by is not None:
                d_weights *= dropped_by
                dropped = weights * dropped_by
            d_scores = softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if ctx.rule.softcap:
                d_scores = tanh_backward(d_scores, kept.pop())
            dq.append(torch.baddbmm(unused, d_scores, k[:, first:end], beta=0, alpha=D**-0.5))
            part_of_dk = torch.baddbmm(unused, d_scores.mT, q_block, beta=0, alpha=D**-0.5)
            part_of_dv = torch.bmm(dropped.mT, dy_block)
            if (dk is None or dv is None) and first == 0:
                dk, dv = part_of_dk, part_of_dv
                continue
            if dk is None or dv is None:
                dk, dv = torch.zeros_like(k), torch.zeros_like(v)
            dk[:, first:end] += part_of_dk
            dv[:, first:end] += part_of_dv
        return torch.cat(dq[::-1], 1), dk, dv, None, None, None


GROUP_FILL = 0.75  # sequences share a padded group down to this share of the longest


class PackedSequences:
    """Sequences laid end to end in one row of N tokens: none sees another, and no padding passes through the matrices.

    `positions` (1, N) count from 0 in each sequence. Only attention itself works on padded groups of similar lengths.
    """

    def __init__(self, lengths: Sequence[int], *, device: torch.device | None = None, dropout: float = 0.0) -> None:
        """Lay out sequences of these lengths; `dropout` is the rate at which attention weights are dropped."""
        self.lengths, self.dropout = list(lengths), dropout
        sizes = torch.tensor(self.lengths)
        starts = sizes.cumsum(0) - sizes
        self.positions = (torch.arange(int(sizes.sum())) - starts.repeat_interleave(sizes))[None].to(device)
        self.groups: list[tuple[Tensor, Tensor]] = []  # (token of each place (S, L), the places that are real (n,))
        order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__, reverse=True)
        while order:
            longest = self.lengths[order[0]]
            members = [index for index in order if self.lengths[index] >= GROUP_FILL * longest]
            order = order[len(members) :]
            offsets = torch.arange(longest)
            # Places beyond a sequence's end repeat its last token: causality hides them from the real ones.
            tokens = starts[members, None] + torch.minimum(offsets, sizes[members, None] - 1)
            real = (offsets < sizes[members, None]).flatten().nonzero().squeeze(1)
            self.groups.append((tokens.to(device), real.to(device)))
        tokens_in_order = torch.cat([tokens.flatten()[real] for tokens, real in self.groups])
        self.unsort = tokens_in_order.argsort()

    @property
    def last(self) -> Tensor:
        """Return where each sequence has its last token, (number of sequences,)."""
        return torch.tensor(self.lengths, device=self.positions.device).cumsum(0) - 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:  # noqa: ARG002
        """Compute causal attention inside each sequence; q (1, H, N, D), k and v (1, K, N, D) -> (1, H, N, D)."""
        parts = []
        for tokens, real in self.groups:
            # (1, heads, N, D) -> (S, heads, L, D)
            padded = [heads[0].transpose(0, 1)[tokens].transpose(1, 2) for heads in (q, k, v)]
            y = causal_attention(padded[0], padded[1], padded[2], rule=rule, dropout=self.dropout)
            parts.append(y.transpose(1, 2).flatten(0, 1)[real])  # (n, H, D)
        return torch.cat(parts)[self.unsort].transpose(0, 1)[None]

    def previous(self, ids: Tensor) -> Tensor:
        """Return the token before each of ids (1, N) in its sequence, NO_TOKEN at the beginning of one."""
        return torch.where(self.positions == 0, NO_TOKEN, ids.roll(1, 1))

    def commit(self) -> None:
        """Do nothing: no keys or values are kept."""
