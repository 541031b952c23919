"""Tensors of which every process holds some rows, and how one process gets a whole one for a while.

Rows are cut as torch.chunk cuts them, which is what FSDP does. Every tensor has an owner (train.owners), who sees it
whole where that is needed: Muon's products, and the file of a checkpoint. A wave is a tensor of each owner, so that all
processes have some of the work at the same time and none holds more than one whole tensor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gptcli.device.processes import Processes, exchange_uneven

Wave = tuple[int | None, ...]  # the number of a tensor of each process


def rows_of(length: int, rank: int, count: int) -> slice:
    """Return which of so many rows a process holds."""
    each = -(-length // count)
    return slice(min(rank * each, length), min((rank + 1) * each, length))


class Shards:
    """Tensors by number: their whole shapes, and who owns each."""

    def __init__(self, shapes: Sequence[torch.Size], owners: Sequence[int], processes: Processes) -> None:
        self.shapes, self.owners, self.processes = shapes, owners, processes

    def waves(self, numbers: Iterable[int]) -> Iterator[Wave]:
        """Yield waves that have each of the tensors once."""
        of_each: list[list[int]] = [[] for _ in range(self.processes.count)]
        for number in numbers:
            of_each[self.owners[number]].append(number)
        yield from itertools.zip_longest(*of_each)

    def rows(self, number: int, rank: int | None = None) -> slice:
        """Return which rows of a tensor a process holds, default this one."""
        rank = self.processes.rank if rank is None else rank
        return rows_of(self.shapes[number][0], rank, self.processes.count)

    def gather(self, wave: Wave, part: Callable[[int], Tensor]) -> Tensor | None:
        """Return the whole tensor of the wave that this process owns, if any; `part` gives the rows that it holds."""
        own = wave[self.processes.rank]
        sent = [_flat(None if number is None else part(number), like=wave, part=part) for number in wave]
        lengths = [0 if own is None else self._elements(own, rank) for rank in range(self.processes.count)]
        found = exchange_uneven(sent, lengths)
        return None if own is None else found.view(self.shapes[own])

    def scatter(self, wave: Wave, whole: Tensor | None, part: Callable[[int], Tensor]) -> None:
        """Put the rows of the whole tensors of a wave, which their owners give, into those that each process holds."""
        own, rank = wave[self.processes.rank], self.processes.rank
        if own is None or whole is None:
            sent = [_flat(None, like=wave, part=part)] * self.processes.count
        else:
            sent = list(torch.split(whole.reshape(-1), [self._elements(own, to) for to in range(self.processes.count)]))
        lengths = [0 if number is None else self._elements(number, rank) for number in wave]
        for number, found in zip(wave, torch.split(exchange_uneven(sent, lengths), lengths), strict=True):
            if number is not None:
                part(number).copy_(found.view(part(number).shape))

    def _elements(self, number: int, rank: int) -> int:
        """Return how many elements of a tensor a process holds."""
        shape, rows = self.shapes[number], self.rows(number, rank)
        return (rows.stop - rows.start) * math.prod(shape[1:])


def _flat(tensor: Tensor | None, *, like: Wave, part: Callable[[int], Tensor]) -> Tensor:
    """Return a tensor flat, or an empty one of the dtype and device of the wave's others."""
    if tensor is not None:
        return tensor.reshape(-1)
    return part(next(number for number in like if number is not None)).new_empty(0)
