"""Logits -> the next token. Everything here is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.config.generate import GenerateOptions

Logits = NDArray[np.float32]
Weights = NDArray[np.float64]
Ids = NDArray[np.int64]

TOP_P_TRIAL = 512  # top-p sorts this many of the likeliest first, which nearly always reach p


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> None:
    """Divide positive and multiply negative logits (V,) of the ids in `seen`, in place (Keskar et al. 2019)."""
    chosen = logits[seen]
    logits[seen] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)


def subtract_penalties(logits: Tensor, written: Mapping[int, int], presence: float, frequency: float) -> None:
    """Subtract presence + frequency * count from the logits (V,) of tokens by how often each was written, in place."""
    ids, counts = torch.tensor(list(written)), torch.tensor(list(written.values()), dtype=logits.dtype)
    logits[ids] -= counts * frequency + presence


def add_biases(logits: Tensor, biases: Sequence[tuple[float, ...]]) -> None:
    """Add to the logits (V,) of some ids the bias of each, in place."""
    for index, bias in biases:
        logits[int(index)] += bias


def candidates(logits: Logits, options: GenerateOptions) -> tuple[Ids | None, Weights]:
    """Logits (V,) -> ids (C,), None for all in their order, and their probabilities (C,) times a factor, float64.

    Those that may not be drawn have weight 0, the likeliest 1. In the order of Hugging Face: temperature, top-k, top-p
    (Holtzman et al. 2020), min-p (Nguyen et al. 2024); ties at the k-th place go to the lower id.
    """
    ids: Ids | None = None
    ranked = logits
    if options.top_k is not None and options.top_k < len(logits):
        ids = _top(logits, options.top_k)
        ranked = logits[ids]
    weights = _weights(ranked, options.temperature)
    if options.top_p < 1.0:
        least = options.top_p * weights.sum()
        if ids is None:
            ids, weights = _nucleus_candidates(logits, weights, least)
        weights *= weights.cumsum() - weights < least
    if options.min_p:
        weights *= weights >= options.min_p
    return ids, weights


def _weights(logits: Logits, temperature: float) -> Weights:
    """Probabilities up to a factor, float64, the likeliest 1: no temperature overflows."""
    weights = np.subtract(logits, logits.max(), dtype=np.float64)
    if temperature != 1.0:
        with np.errstate(over="ignore"):
            weights /= temperature
    return np.exp(weights, out=weights)


def _top(logits: Logits, count: int) -> Ids:
    """The ids of the largest finite logits (V,), likeliest first, of equal ones the lower id.

    NumPy finds the k-th largest in half of the time that torch.topk takes on one row, and in as much on many.
    """
    last = len(logits) - count
    least = max(np.partition(logits, last)[last], np.finfo(np.float32).min)  # what is -inf cannot be drawn
    ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")[:count]]


def _nucleus_candidates(logits: Logits, weights: Weights, least: float) -> tuple[Ids, Weights]:
    """Ids and weights, likeliest first, of as many as reach the sum `least`."""
    ids = _top(logits, min(TOP_P_TRIAL, len(logits)))
    if len(ids) < len(logits) and weights[ids].sum() < least * (1 + 1e-9):
        ids = _top(logits, len(logits))
    return ids, weights[ids]


def draw(logits: Logits, options: GenerateOptions, uniform: float) -> int:
    """A token of logits (V,) by the inverse of the cumulative distribution, at `uniform` in [0, 1); temperature 0 takes
    the likeliest."""
    if options.temperature == 0:
        return int(logits.argmax())
    ids, weights = candidates(logits, options)
    # NumPy's running sum of 50,257 numbers takes 140 microseconds, PyTorch's 26.
    reached = weights.cumsum() if ids is not None else torch.from_numpy(weights).cumsum(0).numpy()
    # Rounding ends on the last that may be drawn.
    index = min(reached.searchsorted(uniform * reached[-1], side="right"), reached.searchsorted(reached[-1]))
    return int(index if ids is None else ids[index])


def draw_on_device(logits: Tensor, options: GenerateOptions, uniforms: Tensor) -> Tensor:
    """`draw` of rows (R, V) at (R,) float64 -> (R,), without a step that waits for the device. Of equal logits at the
    k-th place any may be taken, and top-p sorts all."""
    if options.temperature == 0:
        return logits.argmax(-1)
    ids: Tensor | None = None
    ranked = logits
    if options.top_k is not None and options.top_k < logits.shape[1]:
        ranked, ids = logits.topk(options.top_k)
    elif options.top_p < 1.0:
        ranked, ids = logits.sort(dim=-1, descending=True)
    exact = ranked.double()
    weights = exact.sub_(exact.amax(-1, keepdim=True)).div_(options.temperature).exp_()
    if options.top_p < 1.0:
        weights *= weights.cumsum(-1) - weights < options.top_p * weights.sum(-1, keepdim=True)
    if options.min_p:
        weights *= weights >= options.min_p
    reached = weights.cumsum(-1)
    total = reached[:, -1:].contiguous()
    index = torch.searchsorted(reached, uniforms[:, None] * total, right=True)
    index = torch.minimum(index, torch.searchsorted(reached, total))
    index.clamp_(max=weights.shape[1] - 1)  # where they are not finite, there is none; others find that out
    return (index if ids is None else ids.gather(1, index))[:, 0]
