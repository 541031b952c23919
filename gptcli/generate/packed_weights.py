"""Weights as a CPU reads them fastest: the matrices of a loaded model laid out anew, once, for writing text.

oneDNN's packed product and FBGEMM's give a row the same bits alone and among any others, which F.linear does not: the
engine's promise rests on it. Both read weights in less time than F.linear, most so in 8 bits; bfloat16 that a CPU only
emulates is slower than float32 for more than a row or two. Weights of 4 bits in groups were no faster than those of 8.
An overload is called by its name, since choosing it takes microseconds, and kept as what it wraps (`_op`).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.base.errors import ConfigError
from gptcli.config.model import GATED
from gptcli.device.private_torch import (
    fbgemm_half_linear,
    fbgemm_int8_linear,
    fbgemm_pack_half,
    fbgemm_pack_int8,
    int8_weight_mm,
    int_mm,
    onednn_linear,
    onednn_pack,
)
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT, MLP, Attention
from gptcli.model.layers import Linear, Norm, Scale

Quantize = Literal["int8"]

# FBGEMM adds pairs of products in 16 bits where a CPU has no dot product of bytes: 255 x 64 x 2 fits, 255 x 127 x 2
# does not. Rows have outliers and weights have not, so the eighth bit is better spent on the rows.
WEIGHT_LEVELS = 63
ROW_LEVELS, ROW_ZERO = 127, 128
LARGEST_HALF = torch.finfo(torch.float16).max


class PackedLinear(nn.Module):
    """y = x W^T + b with W in oneDNN's layout, computed in the dtype of W; x may have any, y has `output_dtype`."""

    activation, output_dtype = ("none", ""), torch.float32

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features = linear.out_features
        self.packed = onednn_pack(linear.weight.detach().to(dtype))
        self.dtype, self.product = dtype, onednn_linear()
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        name, algorithm = self.activation
        y = self.product(x.to(self.dtype), self.packed, self.bias, name, [], algorithm)
        return y.to(self.output_dtype)

    def before_activation(self, mlp: MLP) -> None:
        """Leave y in 16 bits before the activation of an MLP, whose other product rounds what it gets anyway; GELU
        becomes part of the product itself."""
        if mlp.activation in ("gelu", "gelu_erf"):
            self.activation = ("gelu", "tanh" if mlp.activation == "gelu" else "none")
            mlp.activation = None
        if mlp.activation not in GATED:  # which round twice in 16 bits
            self.output_dtype = self.dtype


class HalfLinear(nn.Module):
    """y = x W^T + b with W in float16, which FBGEMM widens as it reads it, and everything else in float32.

    float16 holds a bfloat16 weight exactly from 6e-5 to 65504, and within 3e-8 below that.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = fbgemm_pack_half(linear.weight.detach().float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        return fbgemm_half_linear(x, self.packed)


class Int8Linear(nn.Module):
    """y = x W^T + b with each row of W, an output channel, and each row of x in 8 bits with a scale of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(1e-30).double() / WEIGHT_LEVELS
        with warnings.catch_warnings():  # quantized tensors are on their way out of torch; `pack` checks they are there
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(scales), dtype=torch.long)
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.packed = fbgemm_pack_int8(quantized)
        self.product = fbgemm_int8_linear()
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp_min_(1e-30)  # faster than the infinity norm
        y = self.product(x / scale, 1 / ROW_LEVELS, ROW_ZERO, self.packed)
        return y.mul_(scale) if self.bias is None else torch.addcmul(self.bias, y, scale)


def _whole_numbers(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return the weight (N, K) in 8 bits, and the scale of each of its rows, (N,) float32."""
    weight = linear.weight.detach().float()
    scales = weight.abs().amax(1).clamp_min(1e-30) / 127
    return (weight / scales[:, None]).round().to(torch.int8), scales


class Int8WeightLinear(nn.Module):
    """Int8Linear where FBGEMM is not built in: weights in 8 bits, rows in bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        whole, scales = _whole_numbers(linear)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.scales = nn.Parameter(scales.bfloat16(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        y = int8_weight_mm(rows, self.weight, self.scales).float().view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int8CudaLinear(nn.Module):
    """Int8Linear by the product of whole numbers that CUDA has (torch._int_mm: 8 bits in, 32 out), x and y in the dtype
    of the activations. It wants more than 16 rows, and widths that are multiples of 16.

    Tested where there is a CPU only, on which the same product is slower than FBGEMM's.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = N = linear.out_features
        whole, scales = _whole_numbers(linear)
        self.weight = nn.Parameter(F.pad(whole, (0, -whole.shape[1] % 16, 0, -N % 16)), requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = rows.abs().amax(-1, keepdim=True).clamp_min(1e-30) / ROW_LEVELS
        whole = (rows / scale).round().to(torch.int8)
        whole = F.pad(whole, (0, self.weight.shape[1] - rows.shape[1], 0, -len(rows) % 32))
        y = int_mm(whole, self.weight.t())[: len(rows), : self.out_features] * scale * self.scales
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)


@torch.inference_mode()
def pack(model: GPT, runtime: Runtime, *, quantize: Quantize | None = None) -> Runtime:
    """Lay out a model's matrices for writing or scoring text, in place; it cannot be trained any more.

    Returns the runtime to use it with. On a CPU bfloat16 is the dtype of the matrices and of products with them, and
    all else is float32, except for the cached keys and values beside matrices of 8 or 16 bits: they are float16, which
    halves what attention reads. Elsewhere only int8 changes anything. Raises ConfigError where it is not to be had.
    """
    if quantize and runtime.device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--quantize {quantize} is for a CPU or CUDA; leave it out, or pass --device cpu")
    if runtime.device.type != "cpu":
        if quantize:
            _replace(model, Int8CudaLinear)
        return runtime
    if quantize and runtime.dtype != torch.float32:
        raise ConfigError(f"--quantize {quantize} computes in float32 between the matrices; leave out --dtype")
    make = _layout(runtime.dtype, quantize)
    if make is None:
        return runtime
    _replace(model, make)
    for module in model.modules():
        if isinstance(module, Norm | Scale):
            module.float()  # not to be widened at every token
        if isinstance(module, MLP) and isinstance(module.up, PackedLinear):
            module.up.before_activation(module)
        if isinstance(module, Attention | MLP) and isinstance(module.projection, PackedLinear):
            module.projection.output_dtype = runtime.dtype  # what it is added to is wider
    short = quantize is not None or runtime.dtype == torch.bfloat16
    return dataclasses.replace(runtime, dtype=torch.float32, short_cache=short)


def _replace(model: GPT, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every matrix by what `make` makes of it."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear) and not (make is HalfLinear and child.weight.abs().max() > LARGEST_HALF):
                setattr(module, name, make(child))


def _layout(dtype: torch.dtype, quantize: Quantize | None) -> Callable[[nn.Linear], nn.Module] | None:
    """Return what to make of each matrix, None where it is best left as it is."""
    fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    if quantize:
        return Int8Linear if fbgemm else Int8WeightLinear
    probe = nn.Linear(32, 32, dtype=dtype)
    try:
        PackedLinear(probe, dtype)(torch.zeros(1, 32, dtype=dtype))
    except (RuntimeError, AttributeError):  # no oneDNN, or none of this dtype: bfloat16 needs AVX-512
        return HalfLinear if fbgemm and dtype == torch.bfloat16 else None
    return lambda linear: PackedLinear(linear, dtype)
