"""The parts of a fine-tuning task that learns from rows; each task has a file of its own beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from gptcli.config.finetune import RowsConfig
from gptcli.data.batches import Step
from gptcli.data.example import Example, Reader
from gptcli.data.messages import Mended
from gptcli.data.rows import Row, Rows, load_rows
from gptcli.data.text import TextOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Together
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.metadata import ModelMetadata
from gptcli.train.metrics import Record
from gptcli.train.run import Validation
from gptcli.train.step import Objective

T = TypeVar("T")


class WrittenBatches(Protocol):
    """Batches that the model itself writes while it learns."""

    carried: dict[str, Tensor]  # what one step leaves for the next

    def __call__(self, step: int) -> Step:
        """Return the batches of optimizer step `step`, counted from 0."""

    def facts(self, step: int) -> Record:
        """Return what metrics.jsonl says of them after step `step`, counted from 1."""


@dataclass(frozen=True)
class Task:
    """A fine-tuning task: how rows are read, what is minimised and measured, and what the tuned model is for."""

    tokenizer: Tokenizer  # the base's, with the control tokens that the task needs
    metadata: ModelMetadata
    read_row: Reader
    objective: Callable[[Sequence[Example]], Objective]  # for these rows to train on
    validate: Callable[[GPT, Sequence[Example], Runtime, Together], Validation]
    writes: bool = True  # text, of which a run can show samples
    mended: Mended | None = None  # what the reader changes in conversations, counted
    prepare: Callable[[Sequence[Example], Runtime, Together], list[Example]] = (
        lambda rows, _runtime, _together: list(rows)  # before training
    )
    by_example: bool = False  # the loss is a mean over examples, not over what is learnt in them
    begin: Callable[[GPT, Sequence[Example], int, Runtime, Together], WrittenBatches] | None = (
        None  # the model writes its batches
    )
    content: Mapping[str, Any] = field(default_factory=dict)  # hashes of what it reads beside rows, by name
    token_dropout: float = 0.0  # share of an example's tokens replaced by <|endoftext|>, drawn anew each time


class Reference(Protocol):
    """A model that is compared with or learnt from, and not trained: whole, or sharded (train.sharded.Sharded)."""

    def evaluate(self, work: Callable[[GPT], T]) -> T:
        """Return what `work` makes of the model, without gradients. Of a sharded one, all processes do it at the same
        time, and only in there its weights are whole."""


@dataclass(frozen=True)
class WholeReference:
    """A reference that this process has all of."""

    model: GPT

    @torch.no_grad()
    def evaluate(self, work: Callable[[GPT], T]) -> T:
        return work(self.model)


LoadBase = Callable[[Tokenizer], Reference]  # the base that a tuned model is compared with, grown to a tokenizer


def reading(data: RowsConfig) -> TextOptions:
    """Return how the files of a run file are read."""
    return TextOptions(encoding=data.encoding, errors=data.errors, flags=False)


def load_examples(inputs: Sequence[str], parse: Callable[[Row], T], data: RowsConfig) -> Rows[T]:
    """Return what `parse` makes of every row of the inputs, read as a run file says."""
    advice = "mend or drop such rows, or -s data.on_bad_line=skip"
    return load_rows(inputs, parse, on_bad_line=data.on_bad_line, options=reading(data), advice=advice)
