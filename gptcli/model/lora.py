"""Low-rank adapters (Hu et al. 2021): beside each frozen matrix W a learnt B A of low rank, y = x W^T + s x A^T B^T."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.finetune import LoraConfig
from gptcli.config.model import ModelConfig
from gptcli.model.gpt import GPT
from gptcli.model.layers import Embedding, Linear

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
        y, low = self.frozen(x), F.linear(x, self.lora_a.to(x.dtype))
        rows = torch.addmm(y.flatten(0, -2), low.flatten(0, -2), self.lora_b.to(x.dtype).t(), alpha=self.scale)
        return rows.view_as(y)

    def frozen(self, x: Tensor) -> Tensor:
        """Return what the layer computes without its adapter."""
        return super().forward(x)


class Int8LoraLinear(LoraLinear):
    """LoraLinear with the frozen weight in 8 bits, each row with a scale of its own (as Dettmers et al. 2023, who take
    4); adapters learn on the rounded weight, and are merged into the exact one."""

    def __init__(self, base: Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__(base, config, generator)
        self.row_scales = nn.Parameter(base.weight.abs().amax(1).clamp_min(1e-30) / 127, requires_grad=False)
        whole = (base.weight / self.row_scales[:, None]).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)

    def frozen(self, x: Tensor) -> Tensor:
        y: Tensor = _Int8Product.apply(x, self.weight, self.row_scales)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(x.dtype)


class _Int8Product(torch.autograd.Function):
    """x W^T with W in 8 bits, widened for each product anew: autograd would keep what was widened."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, row_scales: Tensor) -> Tensor:
        ctx.save_for_backward(weight, row_scales)
        return F.linear(x, weight.to(x.dtype)).mul_(row_scales.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (dy,) = gradients
        weight, row_scales = ctx.saved_tensors
        return (dy * row_scales.to(dy.dtype)) @ weight.to(dy.dtype), None, None


def add_adapters(model: GPT, config: LoraConfig, generator: torch.Generator) -> None:
    """Freeze the model and add adapters to the matrices that the config names."""
    model.requires_grad_(False)
    make = Int8LoraLinear if config.base_dtype == "int8" else LoraLinear
    for name in adapted(model.config, config):
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(parent)
        linear = getattr(module, child)
        setattr(module, child, make(linear, config, generator))


def trained_weights(model: GPT) -> dict[str, Tensor]:
    """Return the weights that are trained by name."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def keep_frozen_in(model: GPT, dtype: torch.dtype) -> None:
    """Keep the frozen matrices in the dtype that they are used in, which changes no bit of what is computed."""
    for module in model.modules():
        if not isinstance(module, Linear | Embedding) or isinstance(module, Int8LoraLinear):
            continue
        if not module.weight.requires_grad:
            module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)
    if model.config.tie_embeddings:
        model.head.weight = model.embedding.weight


def adapted(model: ModelConfig, config: LoraConfig) -> Iterator[str]:
    """Yield names of the modules that get an adapter."""
    for layer in range(model.num_layers):
        for target in config.targets:
            yield from (f"blocks.{layer}.{module}" for module in MODULES[target])
