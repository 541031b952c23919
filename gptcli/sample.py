"""Logits -> the next token. Everything here works on one row (V,) and is exact, without loops over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.config import GenerateOptions


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of the ids in `seen` by `penalty` (Keskar et al. 2019)."""
    chosen = logits[seen]
    return logits.index_put((seen,), torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def candidates(logits: Tensor, options: GenerateOptions) -> tuple[Tensor, Tensor]:
    """Logits (V,) -> the ids that may be drawn, likeliest first, and their probabilities (float64, sum 1).

    In the order of Hugging Face: temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024); ties
    at the k-th place go to the lower id.
    """
    ids = torch.arange(len(logits), device=logits.device)
    if options.top_k is not None and options.top_k < len(logits):
        kth = torch.topk(logits, options.top_k).values[-1]
        ids = ids[logits >= kth]  # more than k where several equal the k-th, of which topk takes any
    ids = ids[torch.argsort(logits[ids], descending=True, stable=True)][: options.top_k]
    ranked = logits[ids].double()
    probabilities = torch.softmax((ranked - ranked[0]) / options.temperature, -1)  # no temperature overflows
    if options.top_p < 1.0:
        before = probabilities.cumsum(-1) - probabilities
        count = max(1, int((before < options.top_p).sum()))
        probabilities, ids = probabilities[:count], ids[:count]
    if options.min_p > 0.0:
        count = int((probabilities >= options.min_p * probabilities[0]).sum())
        probabilities, ids = probabilities[:count], ids[:count]
    return ids, probabilities / probabilities.sum()


def draw(logits: Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    """One token id from logits (V,): the inverse of the cumulative distribution; temperature 0 takes the likeliest."""
    if options.temperature == 0:
        return int(logits.argmax())
    ids, probabilities = candidates(logits, options)
    uniform = torch.rand((), dtype=torch.float64, generator=generator)
    index = int(torch.searchsorted(probabilities.cumsum(-1), uniform, right=True))
    return int(ids[min(index, len(ids) - 1)])
