"""Attention by the device: for whole windows, and for sequences packed end to end (cache.py has that of a KV cache)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.device.private_torch import softmax_backward_data
from gptcli.model.dropout import mask

QUERY_BLOCK = 128  # measured best of 64..512 for T = 256..2048 on 2 Zen 4 cores


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(D)) v where a token sees itself and those before it.

    q (B, H, T, D), k and v (B, K, T, D), H a multiple of K -> (B, H, T, D).
    On a CPU, blocks of queries against the keys they may see: forward and backward of the fused CPU kernel take 2 to 9
    times as long in bfloat16 (T 64..512) and 1.1 to 1.5 times in float32.
    """
    grouped = q.shape[1] != k.shape[1]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=grouped)
    if grouped:
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
    B, H, T, D = q.shape
    flat = (heads.transpose(0, 1).reshape(H * B, T, D) for heads in (q, k, v))  # model.Attention has them in this order
    y: Tensor = _CausalAttention.apply(*flat, dropout)  # type: ignore[no-untyped-call]
    return y.view(H, B, T, D).transpose(0, 1)


class _CausalAttention(torch.autograd.Function):
    """q, k, v (N, T, D) -> (N, T, D), by blocks of queries. Kept are the weights of every block, and dropout's masks.

    Autograd's own backward pass would fill and add a tensor of full size for every slice.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        T, D = q.shape[1:]
        hidden = torch.full((min(T, QUERY_BLOCK),) * 2, float("-inf"), dtype=q.dtype).triu(1)
        y, kept = [], []
        for start in range(0, T, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, T)
            scores = q.new_empty(q.shape[0], end - start, end)
            scores.baddbmm_(q[:, start:end], k[:, :end].mT, beta=0, alpha=D**-0.5)
            scores[:, :, start:].add_(hidden[: end - start, : end - start])
            weights = scores.softmax(-1)
            kept.append(weights)
            if dropout:
                kept.append(mask(weights, dropout))
                weights = weights * kept[-1]
            y.append(torch.bmm(weights, v[:, :end]))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.dropout = dropout
        return torch.cat(y, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = gradients
        q, k, v, *kept = ctx.saved_tensors
        T, D = q.shape[1:]
        dq: list[Tensor] = []
        dk = dv = None
        unused = q.new_empty(())  # added to a product zero times
        for start in reversed(range(0, T, QUERY_BLOCK)):  # the last block has something of every key
            end = min(start + QUERY_BLOCK, T)
            dropped_by = kept.pop() if ctx.dropout else None
            weights, dy_block, q_block = kept.pop(), dy[:, start:end], q[:, start:end]
            d_weights = torch.bmm(dy_block, v[:, :end].mT)
            dropped = weights
            if dropped_by is not None:
                d_weights *= dropped_by
                dropped = weights * dropped_by
            d_scores = softmax_backward_data(d_weights, weights, -1, weights.dtype)
            dq.append(torch.baddbmm(unused, d_scores, k[:, :end], beta=0, alpha=D**-0.5))
            part_of_dk = torch.baddbmm(unused, d_scores.mT, q_block, beta=0, alpha=D**-0.5)
            part_of_dv = torch.bmm(dropped.mT, dy_block)
            if dk is None or dv is None:
                dk, dv = part_of_dk, part_of_dv
            else:
                dk[:, :end] += part_of_dk
                dv[:, :end] += part_of_dv
        return torch.cat(dq[::-1], 1), dk, dv, None


GROUP_FILL = 0.75  # sequences share a padded group down to this share of the longest


class Packed:
    """Sequences laid end to end in one row of N tokens: none sees another, and no padding passes through the matrices.

    `positions` (1, N) count from 0 in each sequence. Only attention itself works on padded groups of similar lengths.
    """

    def __init__(self, lengths: Sequence[int], *, device: torch.device | None = None, dropout: float = 0.0) -> None:
        """`dropout`: the rate at which weights of attention are dropped."""
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
        """Where each sequence has its last token, (number of sequences,)."""
        return torch.tensor(self.lengths, device=self.positions.device).cumsum(0) - 1

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """Causal attention inside each sequence; q (1, H, N, D), k and v (1, K, N, D) -> (1, H, N, D)."""
        parts = []
        for tokens, real in self.groups:
            # (1, heads, N, D) -> (S, heads, L, D)
            padded = [heads[0].transpose(0, 1)[tokens].transpose(1, 2) for heads in (q, k, v)]
            y = causal_attention(padded[0], padded[1], padded[2], dropout=self.dropout)
            parts.append(y.transpose(1, 2).flatten(0, 1)[real])  # (n, H, D)
        return torch.cat(parts)[self.unsort].transpose(0, 1)[None]

    def commit(self) -> None:
        """Nothing is kept."""
