"""Logits -> the next tokens. Everything here is exact, and a row comes out the same alone and beside others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.config import GenerateOptions

TOP_P_TRIAL = 512  # top-p sorts this many of the likeliest first, which nearly always reach p


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> None:
    """Divide positive and multiply negative logits (V,) of the ids in `seen`, in place (Keskar et al. 2019)."""
    chosen = logits[seen]
    logits[seen] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)


def candidates(logits: Tensor, options: GenerateOptions) -> tuple[Tensor | None, Tensor]:
    """Logits (R, V) -> ids (R, C), None for all in their order, and their probabilities (R, C), float64, sum 1.

    Those that may not be drawn have probability 0. In the order of Hugging Face: temperature, top-k, top-p (Holtzman
    et al. 2020), min-p (Nguyen et al. 2024); ties at the k-th place go to the lower id.
    """
    ids: Tensor | None = None
    ranked = logits
    if options.top_k is not None and options.top_k < logits.shape[1]:
        ranked, ids = _top(logits, options.top_k)
    weights = _weights(ranked, options.temperature)
    if options.top_p < 1.0:
        total = weights.sum(-1, keepdim=True)
        if ids is None:
            ids, weights = _nucleus_candidates(logits, weights, total, options)
        weights = _nucleus(weights, total, options)
    weights = _above_min_p(weights, options)
    return ids, weights / weights.sum(-1, keepdim=True)


def _nucleus(weights: Tensor, total: Tensor, options: GenerateOptions) -> Tensor:
    """Weights, likeliest first, without those that come after options.top_p of the total (R, 1) is reached."""
    before = weights.cumsum(-1) - weights
    return weights.masked_fill(before >= options.top_p * total, 0.0)


def _above_min_p(weights: Tensor, options: GenerateOptions) -> Tensor:
    if not options.min_p:
        return weights
    return weights.masked_fill(weights < options.min_p * weights.amax(-1, keepdim=True), 0.0)


def _weights(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities up to a factor, float64, the likeliest 1: no temperature overflows."""
    exact = logits.double()
    return exact.sub_(exact.amax(-1, keepdim=True)).div_(temperature).exp_()


def _top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their ids, likeliest first, of equal ones the lower id."""
    largest, ids = logits.topk(min(count + 1, logits.shape[1]))
    # Of several that equal the last, topk takes any; those that cannot be drawn do not matter.
    ends = enumerate(largest[:, count - 1 :].tolist())
    tied = [row for row, (last, *after) in ends if after == [last] and last > -math.inf]
    ids = ids[:, :count].sort(-1).values
    ranked, order = logits.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, order)
    for row in tied:
        reaching = (logits[row] >= ranked[row, -1]).nonzero()[:, 0]  # by id
        ranked[row], order = (part[:count] for part in logits[row, reaching].sort(descending=True, stable=True))
        ids[row] = reaching[order]
    return ranked, ids


def _nucleus_candidates(
    logits: Tensor, weights: Tensor, total: Tensor, options: GenerateOptions
) -> tuple[Tensor, Tensor]:
    """Ids and weights of every row, likeliest first, as many as reach options.top_p."""
    count = min(TOP_P_TRIAL, logits.shape[1])
    _, ids = _top(logits, count)
    ranked = weights.gather(1, ids)
    if count < logits.shape[1] and bool((ranked.sum(-1, keepdim=True) < options.top_p * total * (1 + 1e-9)).any()):
        ids = logits.argsort(dim=-1, descending=True, stable=True)
        ranked = weights.gather(1, ids)
    return ids, ranked


def draw_on_device(logits: Tensor, options: GenerateOptions, uniforms: Tensor) -> Tensor:
    """`draw` without a step that waits for the device: (R, V) and (R,) float64 -> (R,). Of equal logits at the k-th
    place any may be taken, and top-p sorts all."""
    if options.temperature == 0:
        return logits.argmax(-1)
    ids: Tensor | None = None
    ranked = logits
    if options.top_k is not None and options.top_k < logits.shape[1]:
        ranked, ids = logits.topk(options.top_k)
    elif options.top_p < 1.0:
        ranked, ids = logits.sort(dim=-1, descending=True)
    weights = _weights(ranked, options.temperature)
    if options.top_p < 1.0:
        weights = _nucleus(weights, weights.sum(-1, keepdim=True), options)
    index = _invert(_above_min_p(weights, options), uniforms)
    return (index if ids is None else ids.gather(1, index))[:, 0]


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The place in each row (R, C) where the cumulative sum exceeds that share of the whole, (R, 1)."""
    reached = weights.cumsum(-1)
    total = reached[:, -1:].contiguous()
    index = torch.searchsorted(reached, uniforms[:, None] * total, right=True)
    index = torch.minimum(index, torch.searchsorted(reached, total))  # rounding ends on the last that may be drawn
    return index.clamp_(max=weights.shape[1] - 1)  # where they are not finite, there is none; others find that out


def draw(logits: Tensor, options: GenerateOptions, uniforms: Sequence[float]) -> list[int]:
    """A token of each row (R, V) by the inverse of its cumulative distribution; temperature 0 takes the likeliest.

    `uniforms`: a number in [0, 1) for each row.
    """
    if options.temperature == 0:
        return logits.argmax(-1).tolist()
    ids, probabilities = candidates(logits, options)
    index = _invert(probabilities, torch.tensor(uniforms, dtype=torch.float64, device=logits.device))
    return (index if ids is None else ids.gather(1, index))[:, 0].tolist()
