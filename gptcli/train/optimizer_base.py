"""The common part of the optimizers: groups of weights, a state for each weight, a step in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CPU_BATCH_ELEMENTS = 1 << 20  # of matrices orthogonalised together: more needs memory and saves a CPU no time
BATCH_ELEMENTS = 1 << 26


class Optimizer:
    """Groups of weights with their settings, and a state for each weight, as torch.optim.Optimizer has them: making
    one of that class imports torch._dynamo, which takes a second or two at the start of every run."""

    KINDS: tuple[str, ...] = ()  # of state that has the shape of the weight

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.param_groups = list(groups)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a weight, zero where there was no step yet."""
        if weight not in self.state:
            self.state[weight] = {kind: torch.zeros_like(weight) for kind in self.KINDS}
        return self.state[weight]

    def weights(self) -> list[nn.Parameter]:
        """Return the weights of all groups."""
        return [weight for group in self.param_groups for weight in group["params"]]

    def create_state(self) -> None:
        for weight in self.weights():
            self.state_of(weight)

    def zero_grad(self) -> None:
        for weight in self.weights():
            weight.grad = None

    def pieces(self) -> list[Callable[[], None]]:
        """Return a step in pieces, each for other weights of those that have a gradient."""
        raise NotImplementedError

    def step(self) -> None:
        """Update every weight that has a gradient."""
        for piece in self.pieces():
            piece()


def batch_elements(*, on_cpu: bool) -> int:
    """Return how many elements are updated together, unless one tensor alone has more."""
    return CPU_BATCH_ELEMENTS if on_cpu else BATCH_ELEMENTS


def optimizer_batches(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yield where to cut a list of tensors so that each part but the last has the elements of a batch."""
    first = elements = 0
    for number, tensor in enumerate(tensors, 1):
        elements += tensor.numel()
        if number == len(tensors) or elements >= batch_elements(on_cpu=tensor.device.type == "cpu"):
            yield slice(first, number)
            first, elements = number, 0
