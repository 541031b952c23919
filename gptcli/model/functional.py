"""Operations with a backward pass of our own, where autograd's would keep or move more than it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _NothingKept:
    """The context of a forward pass that no backward pass follows."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Let the tensors go."""


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """Apply a function of one result; where no gradients are made, without what autograd does around its forward."""
    if torch.is_grad_enabled():
        y: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        y = function.forward(_NothingKept(), *arguments)
    return y


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(mean(x^2) + eps) of every row, (..., 1) float32."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()


def _through_norm(dy: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of x, where y = x scale and scale = 1 / rms(x): (dy - y mean(dy y)) scale."""
    product = dy * y
    mean = product.sum(-1, keepdim=True).mul_(-1 / y.shape[-1])
    return torch.addcmul(dy, y, mean, out=product).mul_(scale.to(dy.dtype))


class _RmsNormalize(torch.autograd.Function):
    """RMSNorm that keeps the result, which the product after it keeps anyway, and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = _inverse_rms(x, eps)
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (dy,) = gradients
        return _through_norm(dy, *ctx.saved_tensors), None


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019).

    On a CPU forward and backward take less time than autograd's through F.rms_norm.
    """
    return _apply(_RmsNormalize, x, eps)


def _turn(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Return x cos + (the other half of x) signed_sin, contiguous."""
    y = torch.mul(x, cos, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
    half = x.shape[-1] // 2
    y[..., :half].addcmul_(x[..., half:], signed_sin[..., :half])
    y[..., half:].addcmul_(x[..., :half], signed_sin[..., half:])
    return y


class _Rotate(torch.autograd.Function):
    """The transpose of a rotation is the rotation by the opposite angle: nothing but the tables is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, signed_sin)
        return _turn(x, cos, signed_sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (dy,) = gradients
        cos, signed_sin = ctx.saved_tensors
        return _turn(dy, cos, -signed_sin), None, None


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Return x (..., T, D) with rotary position embedding by gpt.rotary_tables' tables, which broadcast to it."""
    return _apply(_Rotate, x, cos, signed_sin)


class _NormalizeRotate(torch.autograd.Function):
    """A rotation leaves norms alone, so that the two change places: what is kept is the result, which attention keeps
    anyway, and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, cos: Tensor, signed_sin: Tensor) -> Tensor:
        scale = _inverse_rms(x, eps)
        y = _turn(x, cos, signed_sin).mul_(scale.to(x.dtype))
        ctx.save_for_backward(y, scale, cos, signed_sin)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (dy,) = gradients
        y, scale, cos, signed_sin = ctx.saved_tensors
        return _turn(_through_norm(dy, y, scale), cos, -signed_sin), None, None, None


def normalize_and_rotate(x: Tensor, eps: float, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Return rotate(rms_normalize(x, eps), cos, signed_sin)."""
    return _apply(_NormalizeRotate, x, eps, cos, signed_sin)


class _ReluSquared(torch.autograd.Function):
    """Squared ReLU; keeps its result, as the product after it does anyway: the slope 2 max(x, 0) is twice its root."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu().square_()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (dy,) = gradients
        (y,) = ctx.saved_tensors
        # The square root of float32 (MKL) is slow where there are zeros.
        slow = y.dtype == torch.float32
        root = y.clamp_min(torch.finfo(y.dtype).tiny).rsqrt_().mul_(y) if slow else y.sqrt()
        return root.mul_(dy).mul_(2)


def relu_squared(x: Tensor) -> Tensor:
    """Return max(x, 0)^2 (So et al. 2021)."""
    return _apply(_ReluSquared, x)
