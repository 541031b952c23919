"""Batches as a pure function of (seed, step, micro-step, rank): resuming needs one integer.

An epoch cuts the token sequence at a random phase into rows of T tokens and visits every row once, in a random order
that costs no memory. The input of a row is <|endoftext|> and the row without its last token, so that every window a
model ever sees, here, in evaluation and in generation, begins with that token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.base.errors import DataError
from gptcli.config.loss import GoldfishConfig
from gptcli.data.goldfish import dropped
from gptcli.data.shards import ResidentTokens, TokenArray
from gptcli.data.taught import Taught, TaughtTokens

FEISTEL_ROUNDS = 4
IGNORE = -100  # a target that is not learnt, the value of PyTorch and Hugging Face


class Batch(NamedTuple):
    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64
    place: str  # where the first row lies, for messages
    lengths: tuple[int, ...] | None = None  # of sequences laid end to end in one row; None: rows are whole windows
    seed: int | None = None  # of its dropout
    values: Tensor | None = None  # a number for each sequence, float32 (S,): what some tasks' objectives need beside it
    written_log_p: Tensor | None = None  # of each target, float32 (N,), by the model that wrote it
    reference_log_p: Tensor | None = None  # likewise, by a model to stay near to
    taught: Taught | None = None  # what a teacher says of the targets, (B, T, k), where that is known already


class Step(NamedTuple):
    """The batches that one optimizer step learns from."""

    targets: int  # in all the micro-batches, whose losses are divided by it
    micro_batches: Iterable[Batch]  # made when they are asked for: a batch may be larger than memory


def derived_seed(*numbers: int | str) -> int:
    """Return a 63-bit seed for one purpose: sha256 of the numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def permute(index: NDArray[np.uint64], size: int, seed: int) -> NDArray[np.uint64]:
    """Return the images of `index` under a pseudo-random permutation of range(size), computed without a table.

    Uses a Feistel network on the next even number of bits; a value outside of the range is sent through again (Black
    and Rogaway 2002, cycle walking).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = [np.uint64(derived_seed(seed, number)) for number in range(FEISTEL_ROUNDS)]
    image = index.astype(np.uint64)
    pending = np.ones(len(image), dtype=bool)
    while pending.any():
        left, right = image[pending] >> shift, image[pending] & mask
        for key in keys:
            left, right = right, left ^ (splitmix64(right ^ key) & mask)
        image[pending] = (left << shift) | right
        pending = image >= np.uint64(size)
    return image


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit integers (Steele et al. 2014); the products wrap around on purpose."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Rows(NamedTuple):
    """Rows of a text."""

    ids: Tensor  # (R, T) int64
    targets: Tensor  # the same, IGNORE where nothing is learnt
    taught: Taught | None  # what a teacher says of them, (R, T, k)
    place: str  # of the first


class TokenRows:
    """The rows of one text, epoch after epoch, by their numbers."""

    def __init__(
        self,
        tokens: TokenArray | ResidentTokens,
        *,
        context_length: int,
        seed: int,
        goldfish: GoldfishConfig | None = None,
        taught: TaughtTokens | None = None,
        name: str = "the training split",
    ) -> None:
        """Raise DataError where the tokens do not fill one row. `taught`: what a teacher says of the tokens."""
        if len(tokens) < context_length:
            raise DataError(
                f"{name} has {len(tokens)} tokens, fewer than one context of {context_length}; "
                "give more text or lower model.context_length (in fine-tuning data.max_tokens)"
            )
        self.tokens, self.context_length, self.seed, self.goldfish = tokens, context_length, seed, goldfish
        self.taught = taught
        self.count = max(1, len(tokens) // context_length - 1)  # of an epoch; one row less leaves room for the phase

    def read(self, numbers: NDArray[np.int64]) -> Rows:
        """Return the rows of so many numbers (R,)."""
        starts = np.concatenate([self._starts(int(epoch), numbers) for epoch in np.unique(numbers // self.count)])
        rows = self.tokens.rows(starts, self.context_length)
        targets = rows if self.goldfish is None else self._learnt(starts, rows, self.goldfish)
        taught = None if self.taught is None else self.taught.rows(starts, self.context_length)
        return Rows(rows, targets, taught, self.tokens.place(int(starts[0])))

    def _starts(self, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the first tokens of the rows that lie in `epoch`."""
        T = self.context_length
        phase = derived_seed(self.seed, "phase", epoch) % (len(self.tokens) - self.count * T + 1)
        rows = (numbers[numbers // self.count == epoch] % self.count).astype(np.uint64)
        return permute(rows, self.count, derived_seed(self.seed, "order", epoch)).astype(np.int64) * T + phase

    def _learnt(self, starts: NDArray[np.int64], rows: Tensor, goldfish: GoldfishConfig) -> Tensor:
        """Return rows (R, T) without the targets that the goldfish loss does not learn, whatever row they are in."""
        before = self.tokens.rows(np.maximum(starts - goldfish.context, 0), goldfish.context)
        for row, start in enumerate(starts):
            if (missing := goldfish.context - int(start)) > 0:  # at the beginning of all text
                before[row] = before[row].roll(missing)
                before[row, :missing] = 0
        return rows.masked_fill(dropped(torch.cat((before, rows), dim=1), goldfish), IGNORE)


class TokenBatches:
    """The training batches of a run on one text."""

    def __init__(
        self,
        tokens: TokenArray | ResidentTokens,
        *,
        context_length: int,
        batch_size: int,
        micro_batch_size: int,
        first_token: int,
        seed: int,
        goldfish: GoldfishConfig | None = None,
        taught: TaughtTokens | None = None,
    ) -> None:
        """Raise DataError where the tokens do not fill one row."""
        self.source = TokenRows(tokens, context_length=context_length, seed=seed, goldfish=goldfish, taught=taught)
        self.tokens, self.rows = tokens, self.source.count
        self.context_length, self.first_token = context_length, first_token
        self.batch_size, self.micro_batch_size, self.goldfish = batch_size, micro_batch_size, goldfish

    def __call__(self, step: int) -> Step:
        """Return the batches of optimizer step `step`, counted from 0."""
        first = step * self.batch_size
        starts = range(first, first + self.batch_size, self.micro_batch_size)
        micro_batches = (self._batch(np.arange(start, start + self.micro_batch_size)) for start in starts)
        if self.goldfish is not None:
            return counted(list(micro_batches))
        return Step(self.batch_size * self.context_length, micro_batches)

    def epochs(self, steps: int) -> float:
        """Return how often so many steps read the text."""
        return steps * self.batch_size / self.rows

    def _batch(self, numbers: NDArray[np.int64]) -> Batch:
        rows = self.source.read(numbers)
        return Batch(begun(rows.ids, self.first_token), rows.targets, rows.place, taught=rows.taught)


def begun(rows: Tensor, first_token: int) -> Tensor:
    """Return the inputs of rows (R, T): the first token, and each row without its last."""
    inputs = torch.roll(rows, 1, dims=1)
    inputs[:, 0] = first_token
    return inputs


def counted(micro_batches: Sequence[Batch]) -> Step:
    """Return a step of micro-batches that are there."""
    return Step(sum(int((batch.targets != IGNORE).sum()) for batch in micro_batches), micro_batches)
