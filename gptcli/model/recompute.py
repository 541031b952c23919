"""Activation checkpointing (Chen et al. 2016): a block keeps its input alone, and the backward pass computes it again.

The gradients are the same to the bit: the second computation has the operations of the first and drops what it dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from gptcli.model import dropout


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Callable[..., Tensor], arguments: Sequence[Any], weights: Sequence[Tensor],
                drops: bool, x: Tensor, *_: Tensor) -> Tensor:  # fmt: skip
        ctx.block, ctx.arguments, ctx.weights = block, arguments, weights
        ctx.drops = drops
        ctx.dropped = dropout.state(x) if drops else None
        ctx.save_for_backward(x)
        run = getattr(block, "forward", block)  # hooks of the block are for the computation that has gradients
        y: Tensor = run(x, *arguments)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad(), dropout.restored(ctx.dropped, x) if ctx.drops else nullcontext():
            y = ctx.block(x, *ctx.arguments)
        asked = [x, *(weight for weight in ctx.weights if weight.requires_grad)]
        found = iter(torch.autograd.grad(y, asked, gradients, allow_unused=True))
        of_x = next(found)
        of_weights = [next(found) if weight.requires_grad else None for weight in ctx.weights]
        return None, None, None, None, of_x, *of_weights


def recomputed(
    block: Callable[..., Tensor], x: Tensor, arguments: Sequence[Any], weights: Sequence[Tensor], *, drops: bool
) -> Tensor:
    """Return block(x, *arguments), of which autograd keeps x alone. `weights` are those of the block; `drops`: whether
    it drops anything."""
    y: Tensor = _Recomputed.apply(block, arguments, weights, drops, x, *weights)  # type: ignore[no-untyped-call]
    return y
