"""Muon (Jordan et al. 2024): momentum whose update is orthogonalised, for the matrices inside the blocks."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gptcli.device.private_torch import foreach_add_, foreach_mul_
from gptcli.train.optimizer_base import Optimizer, batch_elements, optimizer_batches
from gptcli.train.orthogonalize import orthogonalize, orthogonalize_flops

MUON_ITERATIONS = 3  # loses nothing in trials beside 5
SECOND_MOMENT, NORMUON_DECAY = "second_moment", 0.95
MIN_TILE = 32  # on the short side: there is little left to save


class Muon(Optimizer):
    """Momentum whose update is orthogonalised, over all matrices of one shape at once. A step uses up the gradients.

    `tiles` is the shape of the matrices that a weight is made of, of muon_tiles; a weight it lacks is one matrix.
    `normalized` evens the update out (NorMuon); `cautious` decays only where update and weight agree.
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
        cautious: bool = False,
        normalized: bool = False,
    ) -> None:
        group = {"params": list(parameters), "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([group])
        self.tiles, self.dtype, self.cautious, self.normalized = tiles, dtype, cautious, normalized

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        state = super().state_of(weight)
        if self.normalized and SECOND_MOMENT not in state:
            state[SECOND_MOMENT] = weight.new_zeros(
                second_moment_shape(weight.shape, self.tiles.get(weight, weight.shape))
            )
        return state

    def pieces(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for group in self.param_groups:
            given = [(weight, weight.detach(), weight.grad) for weight in group["params"] if weight.grad is not None]
            found += self.updates(given, group)
        return found

    def updates(
        self, weights: Iterable[tuple[nn.Parameter, Tensor, Tensor]], group: dict[str, Any]
    ) -> list[Callable[[], None]]:
        """Return what updates weights of a group, each given as (its key, its values, its gradient), in pieces."""
        # Matrices of one shape and scale.
        alike: dict[tuple[torch.Size, float], list[_Matrices]] = defaultdict(list)
        for key, weight, gradient in weights:
            tile = self.tiles.get(key, weight.shape)
            scale = max(1, tile[0] / weight.shape[1]) ** 0.5
            for matrices in _matrices(weight, gradient, self.state_of(key), tile):
                alike[matrices.weight.shape[1:], scale].append(matrices)
        return [
            functools.partial(self._apply, several[part], scale, group)
            for (_, scale), several in alike.items()
            for part in optimizer_batches([matrices.weight for matrices in several])
        ]

    @torch.no_grad()
    def _apply(self, several: list[_Matrices], scale: float, group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        targets = [matrices.weight for matrices in several]
        counts = [len(target) for target in targets]
        changes = targets[0].new_empty(sum(counts), *targets[0].shape[1:], dtype=self.dtype)
        for matrices, change in zip(several, torch.split(changes, counts), strict=True):
            matrices.average.lerp_(matrices.gradient, 1 - group["momentum"])
            change.copy_(matrices.gradient.lerp_(matrices.average, group["momentum"]))  # Nesterov
        changes = orthogonalize(changes, MUON_ITERATIONS).float()
        factors = None
        if self.normalized:
            factors = _evening_factors(changes, [matrices.second_moment for matrices in several])
        rate = group["lr"]
        if group["weight_decay"] and self.cautious:
            for target, change in zip(targets, torch.split(changes, counts), strict=True):
                target.sub_(target * (target * change > 0) * (rate * group["weight_decay"]))
        elif group["weight_decay"]:
            foreach_mul_(targets, 1 - rate * group["weight_decay"])
        if isinstance(rate, Tensor):
            (changes if factors is None else factors).mul_(rate)
            rate = 1.0
        if factors is None:
            foreach_add_(targets, list(torch.split(changes, counts)), alpha=-rate * scale)
            return
        parts = zip(targets, torch.split(changes, counts), torch.split(factors, counts), strict=True)
        for target, change, factor in parts:
            target.addcmul_(change, factor, value=-rate * scale)


class _Matrices(NamedTuple):
    """Matrices of a weight, with what belongs to them, as views (N, R, C)."""

    weight: Tensor
    gradient: Tensor
    average: Tensor
    second_moment: Tensor  # (N, R, 1), or (N, 1, C) where they are wide; without NorMuon not there, (0,)


def second_moment_shape(shape: Sequence[int], tile: Sequence[int]) -> tuple[int, int]:
    """Return the shape of NorMuon's state of a weight: for each of its matrices a number a row, or a column where they
    are wide."""
    down, across = math.ceil(shape[0] / tile[0]), math.ceil(shape[1] / tile[1])
    return (shape[0], across) if tile[0] >= tile[1] else (down, shape[1])


def _evening_factors(changes: Tensor, second_moments: list[Tensor]) -> Tensor:
    """Return what the rows of changes (N, R, C), or where they are wide the columns, are multiplied by so that they are
    divided by running root mean squares and each matrix keeps its norm: NorMuon (Li et al. 2025). What is orthogonal
    has rows alike on its short side only."""
    running = torch.cat(second_moments)
    if running.shape[-1] == 1:
        squares = torch.linalg.vector_norm(changes, dim=-1, keepdim=True).square_().div_(changes.shape[-1])
    else:  # a norm over another dimension than the last takes ten times as long
        squares = changes.square().sum(-2, keepdim=True).div_(changes.shape[-2])
    running.lerp_(squares, 1 - NORMUON_DECAY)
    for kept, now in zip(second_moments, torch.split(running, [len(each) for each in second_moments]), strict=True):
        kept.copy_(now)
    factors = running.clamp_min_(1e-10).rsqrt_()
    before, after = squares.sum((-2, -1), keepdim=True), (squares * factors.square()).sum((-2, -1), keepdim=True)
    return factors.mul_((before / after.clamp_min(1e-20)).sqrt())


def _matrices(
    weight: Tensor, gradient: Tensor, state: Mapping[str, Tensor], tile: tuple[int, ...]
) -> Iterator[_Matrices]:
    """Yield the matrices that a weight (R, C) is made of, at most a batch at a time, and what is left at the ends."""
    most = max(1, batch_elements(on_cpu=weight.device.type == "cpu") // math.prod(tile))
    average, moment = state["momentum_buffer"], state.get(SECOND_MOMENT)
    whole = len(weight) // tile[0] * tile[0]
    starts = [*range(0, whole, most * tile[0]), *([whole] if whole < len(weight) else [])]
    for left in range(0, weight.shape[1], tile[1]):
        for top, end in zip(starts, [*starts[1:], len(weight)], strict=True):
            bottom = min(end, whole) if top < whole else end
            count = max(1, (bottom - top) // tile[0])
            places = slice(top, bottom), slice(left, left + tile[1])
            views = (tensor[places] for tensor in (weight, gradient, average))
            w, g, a = (view.view(count, -1, view.shape[1]) for view in views)
            if moment is None:
                yield _Matrices(w, g, a, weight.new_empty(0))
            elif tile[0] >= tile[1]:
                column = left // tile[1]
                yield _Matrices(w, g, a, moment[top:bottom, column : column + 1].view(count, -1, 1))
            else:
                row = top // tile[0]
                yield _Matrices(w, g, a, moment[row : row + count, places[1]].unsqueeze(1))


def muon_tiles(
    weights: Mapping[str, torch.Size],
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
