"""Which process updates which weights, and where each lies in the buffers that the processes exchange.

Every weight has one owner, who adds up its gradient, keeps its optimizer state and updates it whole: Muon needs whole
matrices. A process's weights, end to end, are its part; parts are exchanged a chunk of equal length at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 16  # elements: each weight begins where PyTorch lets its own tensors begin, on 64 bytes of float32
CHUNK_BYTES = 32 << 20  # exchanged at once, for all processes together


@dataclass(frozen=True)
class Piece:
    """Elements [start, end) of a weight, flat, which lie in a chunk from `place` on."""

    weight: int
    start: int
    end: int
    place: int


@dataclass(frozen=True)
class Layout:
    """Where weights lie: `owners` by weight, and for every chunk the pieces in each owner's row of it."""

    owners: tuple[int, ...]
    places: tuple[int, ...]  # first element of each weight in its owner's part
    lengths: tuple[int, ...]  # elements of each owner's part
    chunk: int  # elements of a row
    chunks: tuple[tuple[tuple[Piece, ...], ...], ...]

    def owned(self, rank: int) -> list[int]:
        """Return the weights of a process, in their order."""
        return [weight for weight, owner in enumerate(self.owners) if owner == rank]


def lay_out(sizes: Sequence[int], costs: Sequence[float], processes: int, itemsize: int = 4) -> Layout:
    """Divide weights of `sizes` elements: the costliest first, each to the process that has least so far."""
    owners, loads = [0] * len(sizes), [0.0] * processes
    for weight in sorted(range(len(sizes)), key=lambda weight: (-costs[weight], weight)):
        owners[weight] = min(range(processes), key=lambda rank: (loads[rank], rank))
        loads[owners[weight]] += costs[weight]
    lengths, places = [0] * processes, [0] * len(sizes)
    for weight, owner in enumerate(owners):
        places[weight] = lengths[owner]
        lengths[owner] += -(-sizes[weight] // ALIGNED) * ALIGNED
    chunk = max(1, min(max(lengths), CHUNK_BYTES // itemsize // processes))
    count = -(-max(lengths) // chunk)
    rows: list[list[list[Piece]]] = [[[] for _ in range(processes)] for _ in range(count)]
    for weight, owner in enumerate(owners):
        first, last = places[weight], places[weight] + sizes[weight]
        for number in range(first // chunk, -(-last // chunk)):
            start, end = max(first, number * chunk), min(last, (number + 1) * chunk)
            rows[number][owner].append(Piece(weight, start - first, end - first, start - number * chunk))
    chunks = tuple(tuple(tuple(row) for row in chunk_rows) for chunk_rows in rows)
    return Layout(tuple(owners), tuple(places), tuple(lengths), chunk, chunks)


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
