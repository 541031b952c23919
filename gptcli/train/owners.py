"""The process that updates each weight, and the place of each in the buffers that the processes exchange.

Every weight has one owner, who adds up its gradient, keeps its optimizer state and updates it whole: Muon needs whole
matrices. A process's weights, end to end, are its part; parts are exchanged a chunk of equal length at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 16  # elements: each weight begins where PyTorch lets its own tensors begin, on 64 bytes of float32
MUON_COST = 3.0  # of updating an element, relative to AdamW
CHUNK_BYTES = 32 << 20  # exchanged at once, for all processes together


@dataclass(frozen=True)
class Piece:
    """Elements [start, end) of a weight, flat, which lie in a chunk from `place` on."""

    weight: int
    start: int
    end: int
    place: int


@dataclass(frozen=True)
class Owners:
    """The process that has each weight: `owners` and `places` by weight, `lengths` by process."""

    owners: tuple[int, ...]
    places: tuple[int, ...]  # first element of each weight in its owner's part
    lengths: tuple[int, ...]  # elements of each owner's part

    def owned(self, rank: int) -> list[int]:
        """Return the weights of a process, in their order."""
        return [weight for weight, owner in enumerate(self.owners) if owner == rank]


@dataclass(frozen=True)
class Chunk:
    """A stretch that is exchanged at once: elements [start, start + width) of every part, and the pieces in each."""

    start: int
    width: int
    rows: tuple[tuple[Piece, ...], ...]


def update_costs(sizes: Sequence[int], by_muon: Sequence[bool]) -> list[float]:
    """Return about what it costs to update weights."""
    return [size * (MUON_COST if muon else 1.0) for size, muon in zip(sizes, by_muon, strict=True)]


def divide(sizes: Sequence[int], costs: Sequence[float], processes: int) -> Owners:
    """Divide weights of `sizes` elements: the costliest first, each to the process that has least so far."""
    owners = [0] * len(sizes)
    loads = [(0.0, rank) for rank in range(processes)]
    for weight in sorted(range(len(sizes)), key=lambda weight: (-costs[weight], weight)):
        load, rank = heapq.heappop(loads)
        owners[weight] = rank
        heapq.heappush(loads, (load + costs[weight], rank))
    lengths, places = [0] * processes, [0] * len(sizes)
    for weight, owner in enumerate(owners):
        places[weight] = lengths[owner]
        lengths[owner] += -(-sizes[weight] // ALIGNED) * ALIGNED
    return Owners(tuple(owners), tuple(places), tuple(lengths))


def cut(owners: Owners, sizes: Sequence[int], chunk_bytes: int = CHUNK_BYTES, *, itemsize: int = 4) -> list[Chunk]:
    """Cut the parts into chunks of at most `chunk_bytes` for all processes together."""
    processes, longest = len(owners.lengths), max(owners.lengths)
    most = max(1, chunk_bytes // itemsize // processes)
    rows: list[list[list[Piece]]] = [[[] for _ in range(processes)] for _ in range(-(-longest // most))]
    for weight, owner in enumerate(owners.owners):
        first, last = owners.places[weight], owners.places[weight] + sizes[weight]
        for number in range(first // most, -(-last // most)):
            start, end = max(first, number * most), min(last, (number + 1) * most)
            rows[number][owner].append(Piece(weight, start - first, end - first, start - number * most))
    return [
        Chunk(number * most, min(most, longest - number * most), tuple(map(tuple, pieces)))
        for number, pieces in enumerate(rows)
    ]


def fill(row: Tensor, pieces: Sequence[Piece], tensors: Sequence[Tensor | None]) -> None:
    """Copy pieces of flat tensors into a row; zeros stand for those that are None."""
    for piece in pieces:
        part, tensor = row[piece.place : piece.place + piece.end - piece.start], tensors[piece.weight]
        if tensor is None:
            part.zero_()
        else:
            part.copy_(tensor[piece.start : piece.end])


def empty(row: Tensor, pieces: Sequence[Piece], tensors: Sequence[Tensor]) -> None:
    """Copy what `fill` put into a row back into flat tensors."""
    for piece in pieces:
        torch.narrow(tensors[piece.weight], 0, piece.start, piece.end - piece.start).copy_(
            row[piece.place : piece.place + piece.end - piece.start]
        )
