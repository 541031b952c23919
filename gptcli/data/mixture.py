"""Several texts in shares: which text a row is of, and which of its rows, as a pure function of the row's number.

Rows come in blocks of BLOCK. In each block the numbers 0 .. BLOCK - 1, shifted by a random part of one and in a random
order, are divided by the shares, so that after any number of blocks each text has its share to a row or so. A text that
has been read as often as its cap allows is left out, and the rest divided by the others' shares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.base.errors import ConfigError
from gptcli.base.units import count
from gptcli.config.data import SourceConfig
from gptcli.data.batches import Batch, Step, TokenRows, begun, counted, derived_seed, permute
from gptcli.data.taught import Taught

BLOCK = 1024


@dataclass
class _Reached:
    """The number of rows of each text that come before a block."""

    block: int
    taken: NDArray[np.int64]


class Mixture:
    """A division of rows among texts."""

    def __init__(self, shares: Sequence[float], most: Sequence[int | None], seed: int) -> None:
        """Mix texts by `shares`, relative to each other, reading at most `most` rows of each, None for any number."""
        self.shares = np.array(shares, dtype=np.float64)
        self.most = np.array([np.iinfo(np.int64).max if rows is None else rows for rows in most], dtype=np.int64)
        self.seed = seed
        self.reached = _Reached(0, np.zeros(len(shares), dtype=np.int64))

    def divide(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return of the rows `first` .. `first` + `count` the text of each, and its number among that text's rows."""
        texts, numbers = [], []
        for block in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
            block_texts, block_numbers = self._block(block)
            part = slice(max(0, first - block * BLOCK), first + count - block * BLOCK)
            texts.append(block_texts[part])
            numbers.append(block_numbers[part])
        return np.concatenate(texts), np.concatenate(numbers)

    def taken(self, rows: int) -> NDArray[np.int64]:
        """Return how many of the first `rows` are of each text."""
        block, rest = divmod(rows, BLOCK)
        taken = self._before(block).copy()
        return taken + np.bincount(self._divided(block, taken)[0][:rest], minlength=len(taken)) if rest else taken

    def _block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._divided(block, self._before(block))

    def _before(self, block: int) -> NDArray[np.int64]:
        """Return the rows of each text before a block; where the caps allow it, of many blocks at once."""
        if block < self.reached.block:
            self.reached = _Reached(0, np.zeros(len(self.shares), dtype=np.int64))
        at = self.reached
        while at.block < block:
            if free := min(block - at.block, self._free_blocks(at.taken)):
                at.taken = at.taken + self._counts(range(at.block, at.block + free), at.taken)
                at.block += free
            else:
                at.taken = at.taken + np.bincount(self._divided(at.block, at.taken)[0], minlength=len(at.taken))
                at.block += 1
        return at.taken

    def _free_blocks(self, taken: NDArray[np.int64]) -> int:
        """Return a number of blocks in which no text reaches its cap."""
        open_texts = taken < self.most
        shares = self._open_shares(taken)
        if not open_texts.any():
            return 0
        left = (self.most - taken)[open_texts] / (BLOCK * shares[open_texts] + 2)
        return max(0, int(left.min()) - 1)

    def _open_shares(self, taken: NDArray[np.int64]) -> NDArray[np.float64]:
        shares = np.where(taken < self.most, self.shares, 0.0)
        shares = shares if shares.any() else self.shares
        return shares / shares.sum()

    def _borders(self, taken: NDArray[np.int64]) -> NDArray[np.float64]:
        borders = self._open_shares(taken).cumsum()
        borders[borders >= borders[-1]] = 1.0
        return borders

    def _counts(self, blocks: range, taken: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of each text in blocks in which none reaches its cap."""
        borders = self._borders(taken) * BLOCK
        shifts = np.array([self._shift(block) for block in blocks])
        below = np.ceil(borders[None, :] - shifts[:, None]).clip(0, BLOCK).astype(np.int64).sum(0)
        return np.diff(below, prepend=0)

    def _shift(self, block: int) -> float:
        return (derived_seed(self.seed, "mixture", block) >> 43) / 2**20  # exact beside a whole number

    def _divided(self, block: int, taken: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the text of each row of a block, and its number, after so many rows of each text."""
        order = permute(np.arange(BLOCK, dtype=np.uint64), BLOCK, derived_seed(self.seed, "mixed", block))
        places = (order.astype(np.float64) + self._shift(block)) / BLOCK
        texts = self._borders(taken).searchsorted(places, side="right")
        while True:
            numbers = np.empty(BLOCK, dtype=np.int64)
            for text in range(len(taken)):
                own = np.flatnonzero(texts == text)
                numbers[own] = taken[text] + np.arange(len(own))
            over = numbers >= self.most[texts]
            if not over.any():
                return texts, numbers
            held = taken + np.bincount(texts[~over], minlength=len(taken))
            if not (held < self.most).any():  # no run reads them: MixedBatches.check
                return texts, numbers
            left = int(over.sum())
            order = permute(np.arange(left, dtype=np.uint64), left, derived_seed(self.seed, "over a cap", block, left))
            texts[over] = self._borders(held).searchsorted((order + 0.5) / left, side="right")


def shares_of(parts: Sequence[SourceConfig], tokens: Sequence[int], temperature: float) -> list[float]:
    """Return the share of each part: its weight, or its tokens to the power of 1 / temperature."""
    found = [
        part.weight if part.weight is not None else size ** (1 / temperature)
        for part, size in zip(parts, tokens, strict=True)
    ]
    total = math.fsum(found)
    return [share / total for share in found]


class MixedBatches:
    """The training batches of a run on several texts."""

    def __init__(
        self,
        sources: Sequence[TokenRows],
        parts: Sequence[SourceConfig],
        *,
        temperature: float,
        batch_size: int,
        micro_batch_size: int,
        first_token: int,
        seed: int,
    ) -> None:
        """Mix the texts of `sources`, one for each of `parts`."""
        self.sources, self.names = list(sources), [part.path for part in parts]
        self.batch_size, self.micro_batch_size, self.first_token = batch_size, micro_batch_size, first_token
        self.context_length = self.sources[0].context_length
        self.shares = shares_of(parts, [len(source.tokens) for source in sources], temperature)
        self.rows = sum(source.count for source in sources)
        most = [
            None if part.max_epochs is None else math.floor(part.max_epochs * source.count)
            for part, source in zip(parts, sources, strict=True)
        ]
        self.mixture = Mixture(self.shares, most, seed)
        self.goldfish = self.sources[0].goldfish

    def __call__(self, step: int) -> Step:
        """Return the batches of optimizer step `step`, counted from 0."""
        first = step * self.batch_size
        starts = range(first, first + self.batch_size, self.micro_batch_size)
        micro_batches = (self._batch(start) for start in starts)
        if self.goldfish is not None:
            return counted(list(micro_batches))
        return Step(self.batch_size * self.context_length, micro_batches)

    @property
    def most_steps(self) -> int:
        """Return how many steps the caps leave rows for; without caps more than any run has."""
        return sum(int(rows) for rows in self.mixture.most) // self.batch_size

    def check(self, steps: int) -> None:
        """Raise ConfigError where the caps leave fewer rows than so many steps need."""
        if steps > self.most_steps:
            raise ConfigError(
                f"data.train: max_epochs leaves rows for {count(self.most_steps, 'step')} of {self.batch_size}, and "
                f"the run has {steps:,}; lower train.steps or raise max_epochs"
            )

    def epochs_of(self, steps: int) -> dict[str, float]:
        """Return how often so many steps read each text."""
        taken = self.mixture.taken(steps * self.batch_size)
        return {
            name: int(rows) / source.count for name, rows, source in zip(self.names, taken, self.sources, strict=True)
        }

    def epochs(self, steps: int) -> float:
        """Return how often so many steps read what they read, on average of their rows."""
        taken = self.mixture.taken(steps * self.batch_size)
        repeats = [int(rows) / source.count for rows, source in zip(taken, self.sources, strict=True)]
        return float(np.average(repeats, weights=np.maximum(taken, 1)))

    def _batch(self, first: int) -> Batch:
        texts, numbers = self.mixture.divide(first, self.micro_batch_size)
        read = {int(text): self.sources[text].read(numbers[texts == text]) for text in np.unique(texts)}
        places = torch.from_numpy(texts.argsort(kind="stable").argsort())  # of each row among those, text by text

        def in_order(parts: Iterable[Tensor]) -> Tensor:
            found = torch.cat(list(parts))
            return found[places.to(found.device)]

        ids, targets = in_order(rows.ids for rows in read.values()), in_order(rows.targets for rows in read.values())
        said = [rows.taught for rows in read.values() if rows.taught is not None]
        taught = Taught(*map(in_order, zip(*said, strict=True))) if said else None
        place = f"{self.names[texts[0]]}: {read[int(texts[0])].place}"
        return Batch(begun(ids, self.first_token), targets, place, taught=taught)
