"""Muon (Jordan et al. 2024): momentum whose update is orthogonalised, for the matrices inside the blocks."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.device.private_torch import foreach_add_, foreach_mul_
from gptcli.train.optimizer_base import Optimizer, batch_elements, optimizer_batches
from gptcli.train.orthogonalize import orthogonalize, orthogonalize_flops

MUON_ITERATIONS = 3  # loses nothing in trials beside 5
MIN_TILE = 32  # on the short side: there is little left to save


class Muon(Optimizer):
    """Momentum whose update is orthogonalised, over all matrices of one shape at once. A step uses up the gradients.

    `tiles` is the shape of the matrices that a weight is made of, of muon_tiles; a weight it lacks is one matrix.
    """

    KINDS = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        tiles: Mapping[nn.Parameter, tuple[int, int]],
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        group = {"params": list(parameters), "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([group])
        self.tiles, self.dtype = tiles, dtype

    def pieces(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for group in self.param_groups:
            # Matrices of one shape and scale (N, R, C), with their gradients and averages.
            alike: dict[tuple[torch.Size, float], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                tile = self.tiles.get(weight, weight.shape)
                scale = max(1, tile[0] / weight.shape[1]) ** 0.5
                parts = (
                    _split(tensor.detach(), tile)
                    for tensor in (weight, weight.grad, self.state_of(weight)["momentum_buffer"])
                )
                for target, gradient, average in zip(*parts, strict=True):
                    alike[target.shape[1:], scale].append((target, gradient, average))
            for (_, scale), triples in alike.items():
                for part in optimizer_batches([target for target, _, _ in triples]):
                    found.append(functools.partial(self._apply, triples[part], scale, group))
        return found

    @torch.no_grad()
    def _apply(self, triples: list[tuple[Tensor, Tensor, Tensor]], scale: float, group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        targets, gradients, averages = (list(tensors) for tensors in zip(*triples, strict=True))
        counts = [len(target) for target in targets]
        changes = targets[0].new_empty(sum(counts), *targets[0].shape[1:], dtype=self.dtype)
        for gradient, average, change in zip(gradients, averages, torch.split(changes, counts), strict=True):
            average.lerp_(gradient, 1 - group["momentum"])
            change.copy_(gradient.lerp_(average, group["momentum"]))  # Nesterov
        changes = orthogonalize(changes, MUON_ITERATIONS).float()
        rate = group["lr"]
        if group["weight_decay"]:
            foreach_mul_(targets, 1 - rate * group["weight_decay"])
        if isinstance(rate, Tensor):
            changes.mul_(rate)
            rate = 1.0
        foreach_add_(targets, list(torch.split(changes, counts)), alpha=-rate * scale)


def _split(weight: Tensor, tile: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield the matrices of a weight (R, C) as views (N, *tile) of at most a batch, and of what is left at the ends."""
    most = max(1, batch_elements(on_cpu=weight.device.type == "cpu") // math.prod(tile))
    for columns in torch.split(weight, tile[1], 1):
        whole = len(columns) // tile[0] * tile[0]
        if whole:
            yield from torch.split(columns[:whole].view(-1, tile[0], columns.shape[1]), most)
        if whole < len(columns):
            yield columns[None, whole:]


def muon_tiles(
    weights: Mapping[str, Tensor],
    matrices: Mapping[str, tuple[int, int]],
    *,
    step_flops: float,
    max_overhead: float,
    dtype: torch.dtype,
) -> dict[str, tuple[int, int]]:
    """Return the shape of the parts of every weight that are orthogonalised apart; `matrices` are those it is made of.

    A head's query, key and value are one each, which learns more than one matrix for all heads. And what Muon costs
    does not depend on the batch: where it were more than `max_overhead` of the model's FLOPs in a step, short sides are
    cut in 2, 4, 8, ... (Khaled et al. 2025, "MuonBP"), which loses less than the time is worth. The update keeps its
    root mean square.
    """
    limit = max((min(matrices[name]) for name in weights), default=0)
    while True:
        tiles = {name: _tile(matrices[name], limit) for name in weights}
        cost = 0.0
        for name, tile in tiles.items():
            count = weights[name].numel() / math.prod(tile)
            cost += count * orthogonalize_flops(*tile, MUON_ITERATIONS, dtype)
        if cost <= max_overhead * step_flops or limit < 2 * MIN_TILE:
            return tiles
        limit = math.ceil(limit / 2)


def _tile(shape: tuple[int, int], limit: int) -> tuple[int, int]:
    """Return the shape with its short side cut into equal parts of at most `limit`."""
    rows, columns = shape
    short = min(shape)
    part = math.ceil(short / math.ceil(short / limit))
    return (part, columns) if rows <= columns else (rows, part)
