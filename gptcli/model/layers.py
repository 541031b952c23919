"""The layers that blocks and model are made of; each casts its weights to the dtype of its input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.model import ModelConfig
from gptcli.model.functional import rms_normalize


class Linear(nn.Linear):
    """y = x W^T + b in the dtype of x."""

    def reset_parameters(self) -> None:
        """Leave the weights undrawn: they come from GPT.initialize or from a file, and drawing them on the meta device
        would import torch._dynamo, which takes a second."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """A row of the weight for each id."""

    def reset_parameters(self) -> None:
        """Leave the weights undrawn, as in Linear."""


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, self.eps, self.size = config.norm, config.norm_eps, config.hidden_size
        has_weight = config.norm == "layernorm" or config.norm_weight
        has_bias = config.norm == "layernorm" and config.biased("norm")
        self.weight = nn.Parameter(torch.ones(self.size)) if has_weight else None
        self.bias = nn.Parameter(torch.zeros(self.size)) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        if self.kind == "rmsnorm":
            y = rms_normalize(x, self.eps)
            return y if weight is None else y * weight
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.layer_norm(x, (self.size,), weight, bias, self.eps)


class Scale(nn.Module):
    """The learned weight of an RMSNorm that is computed elsewhere, (D,) or (heads x D,)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap x tanh(logits / cap), which bounds logits smoothly (Gemma team 2024); cap 0 leaves them alone."""
    return cap * torch.tanh(logits / cap) if cap else logits
