"""The options of an evaluation on labelled rows. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["classify", "choice", "generate", "pairs"]


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The options of `gptcli evaluate --task`, except those of text."""

    task: Task = "classify"
    template: str | None = None  # how a row becomes a prompt; the task's own where there is none
    label_words: tuple[tuple[str, str], ...] = ()  # label, the words that stand for it after the prompt
    shots: int = 0  # examples before each prompt
    shots_file: str | None = None
    max_tokens: int = 64  # of an answer that is written
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    truncate: Literal["error", "left"] = "error"  # a prompt that does not fit without shots: refuse it, or keep its end
    seed: int = 0  # of shots, resamples and temperatures above 0
    resamples: int = 1000
