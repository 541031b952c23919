"""Muon on matrices of which every process holds some rows: their owners orthogonalise them whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.train.muon import SECOND_MOMENT, Muon, second_moment_shape
from gptcli.train.shards import Shards, Wave


class ShardedMuon(Muon):
    """Muon on the rows that this process holds. A matrix's owner keeps its state, gathers gradient and weight, updates
    it and hands the rows back: a matrix of each process at a time."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, shards: Shards, numbers: dict[nn.Parameter, int],
                 **settings: Any) -> None:  # fmt: skip
        super().__init__(parameters, **settings)
        self.shards, self.numbers = shards, numbers
        self.keys = {number: weight for weight, number in numbers.items()}

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a whole matrix, none with those who do not own it."""
        number = self.numbers[weight]
        if weight not in self.state:
            shape = self.shards.shapes[number]
            state = {kind: weight.new_zeros(shape) for kind in self.KINDS}
            if self.normalized:
                state[SECOND_MOMENT] = weight.new_zeros(second_moment_shape(shape, self.tiles.get(weight, shape)))
            self.state[weight] = state if self.shards.owners[number] == self.shards.processes.rank else {}
        return self.state[weight]

    def pieces(self) -> list[Callable[[], None]]:
        """Return a step in pieces, which all processes do in the same order."""
        found: list[Callable[[], None]] = []
        for group in self.param_groups:
            numbers = [self.numbers[weight] for weight in group["params"] if weight.grad is not None]
            found += [functools.partial(self._update, wave, group) for wave in self.shards.waves(numbers)]
        return found

    @torch.no_grad()
    def _update(self, wave: Wave, group: dict[str, Any]) -> None:
        """Update a matrix of each process."""
        gradient = self.shards.gather(wave, self._gradient_rows)
        whole = self.shards.gather(wave, lambda number: self.keys[number].detach())
        own = wave[self.shards.processes.rank]
        if own is not None and whole is not None and gradient is not None:
            for piece in self.updates([(self.keys[own], whole, gradient)], group):
                piece()
        self.shards.scatter(wave, whole, lambda number: self.keys[number].detach())

    def _gradient_rows(self, number: int) -> Tensor:
        gradient = self.keys[number].grad
        assert gradient is not None
        return gradient
