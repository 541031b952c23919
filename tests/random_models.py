"""Models with random weights, for tests of what does not depend on what a model has learnt."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from gptcli.model.gpt import GPT

M = TypeVar("M", bound=nn.Module)


def randomized(model: GPT, std: float) -> GPT:
    """The model with all weights drawn from N(0, std), large ones, so that the next token depends on all before it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, std, generator=generator)
    return model.eval()


def scrambled(model: M) -> M:
    """The model with weights far from their initial values, norms and biases too, so that a swapped one shows."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(torch.rand_like(weight) + (0.0 if name.endswith("bias") else 0.5))
            else:
                weight.normal_(0.0, 0.2)
    return model.eval()
