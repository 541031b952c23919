"""AdamW (Loshchilov and Hutter 2019)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.device.private_torch import foreach_add_, fused_adamw_
from gptcli.train.optimizer_base import Optimizer, optimizer_batches


class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019), by the fused kernel of torch.optim.AdamW."""

    KINDS = ("exp_avg", "exp_avg_sq")

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        state = super().state_of(weight)
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        return state

    def pieces(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for group in self.param_groups:
            weights: list[nn.Parameter] = [weight for weight in group["params"] if weight.grad is not None]
            found += [functools.partial(self._apply, weights[part], group) for part in optimizer_batches(weights)]
        return found

    @torch.no_grad()
    def _apply(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state_of(weight) for weight in weights]
        steps = [state["step"] for state in states]
        foreach_add_(steps, 1)
        fused_adamw_(
            [*weights],
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
