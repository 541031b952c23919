"""Batches of examples of any length, laid end to end without padding; like all batches a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from gptcli.config.loss import GoldfishConfig
from gptcli.data.batches import IGNORE, Batch, Step, counted, derived_seed, permute
from gptcli.data.example import Example
from gptcli.data.goldfish import dropped

T = TypeVar("T")


class ExampleBatches:
    """Batches of examples: every epoch visits every example once, in a random order."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        micro_batch_tokens: int,
        seed: int,
        token_dropout: float = 0.0,
        blank: int = 0,
        by_example: bool = False,
        goldfish: GoldfishConfig | None = None,
    ) -> None:
        """Replace the share `token_dropout` of an example's tokens by `blank`, drawn anew each time.

        `by_example`: a step's loss is the mean over its examples, not over their targets.
        """
        self.by_example = by_example
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.micro_batch_tokens, self.token_dropout, self.blank = micro_batch_tokens, token_dropout, blank
        self.goldfish = goldfish

    def __call__(self, step: int) -> Step:
        """Return the batches of optimizer step `step`, counted from 0."""
        chosen = examples_of_step(self.examples, step, self.batch_size, self.seed)
        groups = group_by_tokens(chosen, self.micro_batch_tokens, lambda example: example.tokens)
        micro_batches = [self._batch(group, step, number) for number, group in enumerate(groups)]
        return Step(len(chosen), micro_batches) if self.by_example else counted(micro_batches)

    def _batch(self, examples: Sequence[Example], step: int, number: int) -> Batch:
        batch = pack(examples)
        if self.goldfish is not None:
            batch = without_dropped(batch, self.goldfish)
        if not self.token_dropout:
            return batch
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "token dropout", step, number))
        dropped = torch.rand(batch.inputs.shape, generator=generator) < self.token_dropout
        return batch._replace(inputs=batch.inputs.masked_fill(dropped, self.blank))


def examples_of_step(examples: Sequence[Example], step: int, batch_size: int, seed: int) -> list[Example]:
    """Return the examples of optimizer step `step`, of which every epoch has each once."""
    numbers = np.arange(step * batch_size, (step + 1) * batch_size)
    chosen: list[Example] = []
    for epoch in np.unique(numbers // len(examples)):
        rows = (numbers[numbers // len(examples) == epoch] % len(examples)).astype(np.uint64)
        order = permute(rows, len(examples), derived_seed(seed, "order", int(epoch)))
        chosen += [examples[int(row)] for row in order]
    return chosen


def without_dropped(batch: Batch, goldfish: GoldfishConfig) -> Batch:
    """Return packed examples without the targets that the goldfish loss drops. Before an example stand zeros."""
    parts = []
    for ids in torch.split(batch.inputs[0], list(batch.lengths or batch.inputs.shape[1:])):
        begun = torch.cat((ids.new_zeros(goldfish.context - 1), ids))[None]
        # A target stands at the token before it, which is the last of its context.
        parts.append(dropped(torch.cat((begun, begun[:, :1]), dim=1), goldfish))
    return batch._replace(targets=batch.targets.masked_fill(torch.cat(parts, dim=1), IGNORE))


def pack(examples: Sequence[Example]) -> Batch:
    """Concatenate examples into one row, the answers of a pair one after the other. A target stands at the token before
    it, a label where its example ends."""
    sequences = [sequence for example in examples for sequence in example.sequences]
    inputs = [index for example in sequences for index in example.ids]
    targets: list[int] = []
    for example in sequences:
        following = zip(example.ids[1:], example.learnt[1:], strict=True)
        targets += [index if learnt else IGNORE for index, learnt in following]
        targets.append(IGNORE if example.label is None else example.label)
    lengths = tuple(len(example.ids) for example in sequences)
    values = torch.tensor([example.value for example in sequences])
    return Batch(_row(inputs), _row(targets), examples[0].place, lengths, values=values)


def _row(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)[None]


def group_by_tokens(items: Iterable[T], max_tokens: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in order, in groups of at most `max_tokens` tokens; a longer item is a group of its own."""
    group: list[T] = []
    tokens = 0
    for item in items:
        if group and tokens + length(item) > max_tokens:
            yield group
            group, tokens = [], 0
        group.append(item)
        tokens += length(item)
    if group:
        yield group
