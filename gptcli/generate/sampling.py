"""Logits -> the next token, exactly.

`draw` is the reference: temperature, then top-k, top-p and min-p, ties by the lower id, in float64. `draw_on_device`
draws for many rows without waiting for a device and differs in ties at the k-th place alone;
tests/generate/test_sampling.py holds both to one table.
"""

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
    """Subtract presence + frequency * count from the logit of each token that was written, in place; logits (V,)."""
    ids, counts = torch.tensor(list(written)), torch.tensor(list(written.values()), dtype=logits.dtype)
    logits[ids] -= counts * frequency + presence


def add_biases(logits: Tensor, biases: Sequence[tuple[float, ...]]) -> None:
    """Add to the logits (V,) of some ids the bias of each, in place."""
    for index, bias in biases:
        logits[int(index)] += bias


def candidates(logits: Logits, options: GenerateOptions) -> tuple[Ids | None, Weights]:
    """Return ids (C,), None for all in their order, and their probabilities (C,) times a factor, float64.

    Ids that may not be drawn have weight 0, the likeliest 1. In the order of Hugging Face: temperature, top-k, top-p
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
    """Return probabilities up to a factor, float64, the likeliest 1, so that no temperature overflows."""
    weights = np.subtract(logits, logits.max(), dtype=np.float64)
    if temperature != 1.0:
        with np.errstate(over="ignore"):
            weights /= temperature
    return np.exp(weights, out=weights)


def top_unordered(logits: Logits, count: int) -> Ids:
    """Return the ids of the largest finite logits (V,), in their order, and all that equal the last of these.

    NumPy's partition finds the k-th largest of one row in less time than torch.topk.
    """
    last = len(logits) - count
    least = max(np.partition(logits, last)[last], np.finfo(np.float32).min)  # what is -inf cannot be drawn
    return np.flatnonzero(logits >= least)


def _top(logits: Logits, count: int) -> Ids:
    """Return the ids of the largest finite logits (V,), likeliest first, of equal ones the lower id."""
    ids = top_unordered(logits, count)
    return ids[np.argsort(-logits[ids], kind="stable")[:count]]


def _nucleus_candidates(logits: Logits, weights: Weights, least: float) -> tuple[Ids, Weights]:
    """Return ids and weights, likeliest first, of TOP_P_TRIAL tokens if they sum to `least`, else of all."""
    ids = _top(logits, min(TOP_P_TRIAL, len(logits)))
    if len(ids) < len(logits) and weights[ids].sum() < least * (1 + 1e-9):
        ids = _top(logits, len(logits))
    return ids, weights[ids]


def draw(logits: Logits, options: GenerateOptions, uniform: float) -> int:
    """Return the first token at which the cumulative distribution of logits (V,) exceeds `uniform`, in [0, 1).

    Temperature 0 takes the likeliest.
    """
    if options.temperature == 0:
        return int(logits.argmax())
    ids, weights = candidates(logits, options)
    # PyTorch's running sum of a whole vocabulary takes less time than NumPy's.
    reached = weights.cumsum() if ids is not None else torch.from_numpy(weights).cumsum(0).numpy()
    # Rounding ends on the last that may be drawn.
    index = min(reached.searchsorted(uniform * reached[-1], side="right"), reached.searchsorted(reached[-1]))
    return int(index if ids is None else ids[index])


def draw_on_device(logits: Tensor, options: GenerateOptions, uniforms: Tensor) -> Tensor:
    """Draw for rows (R, V) at uniforms (R,), float64 -> (R,), without a step that waits for the device.

    As `draw`, except that of equal logits at the k-th place any may be taken.
    """
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
    index.clamp_(max=weights.shape[1] - 1)  # no index is right where logits are not finite; the caller finds those
    return (index if ids is None else ids.gather(1, index))[:, 0]
