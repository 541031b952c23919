"""Low-rank adapters (Hu et al. 2021): beside each frozen matrix W a learnt B A of low rank, y = x W^T + s x A^T B^T."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.finetune import LoraConfig
from gptcli.config.model import ModelConfig
from gptcli.model.gpt import GPT
from gptcli.model.layers import Linear

WEIGHTS = "adapter_model.safetensors"  # of an adapter without its base, as PEFT names it
MODULES = {"attention": ("attention.qkv", "attention.projection"), "mlp": ("mlp.up", "mlp.projection")}


class LoraLinear(Linear):
    """A linear layer whose weight and bias are frozen, with an adapter that begins as zero."""

    def __init__(self, base: Linear, config: LoraConfig, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        device, bound = base.weight.device, 1 / math.sqrt(base.in_features)
        a = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=device))
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        low = F.linear(x, self.lora_a.to(x.dtype))
        return super().forward(x) + self.scale * F.linear(low, self.lora_b.to(x.dtype))


def add_adapters(model: GPT, config: LoraConfig, generator: torch.Generator) -> None:
    """Freeze the model and add adapters to the matrices that the config names."""
    model.requires_grad_(False)
    for name in adapted(model.config, config):
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(parent)
        linear = getattr(module, child)
        setattr(module, child, LoraLinear(linear, config, generator))


def adapted(model: ModelConfig, config: LoraConfig) -> Iterator[str]:
    """Yield names of the modules that get an adapter."""
    for layer in range(model.num_layers):
        for target in config.targets:
            yield from (f"blocks.{layer}.{module}" for module in MODULES[target])
