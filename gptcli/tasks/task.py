"""What a fine-tuning task that learns from rows brings; each has a file of its own beside this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptcli.data.example import Example, Reader
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Validation
from gptcli.train.step import Objective


@dataclass(frozen=True)
class Task:
    """How rows are read, what is minimised and measured, and what the tuned model is for."""

    tokenizer: Tokenizer  # the base's, with the control tokens that the task needs
    metadata: ModelMetadata
    read_row: Reader
    objective: Callable[[Sequence[Example]], Objective]  # for these rows to train on
    validate: Callable[[GPT, Sequence[Example], Runtime], Validation]
    writes: bool = True  # text, of which a run can show samples
    token_dropout: float = 0.0  # share of an example's tokens replaced by <|endoftext|>, drawn anew each time
