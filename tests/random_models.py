"""Models with random weights, for tests of what does not depend on what a model has learnt."""

from __future__ import annotations

import torch

from gptcli.model.gpt import GPT


def randomized(model: GPT, std: float) -> GPT:
    """The model with all weights drawn from N(0, std), large ones, so that the next token depends on all before it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, std, generator=generator)
    return model.eval()
