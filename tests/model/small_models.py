"""Small models for tests."""

from typing import Any

import torch
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.model.gpt import GPT

SMALL = {"num_layers": 2, "num_heads": 4, "hidden_size": 64, "context_length": 32, "vocab_size": 512}


def make_model(preset: str, *, scramble: bool = True, **changes: Any) -> GPT:
    """A small model; scrambled, no weight is zero or one, so that every part of it shows in the logits."""
    model = GPT(ModelConfig.from_preset(preset, **{**SMALL, **changes}))
    generator = torch.Generator().manual_seed(1)
    model.initialize(generator)
    if scramble:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


def random_ids(*shape: int, vocab_size: int = SMALL["vocab_size"], seed: int = 2) -> Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))
