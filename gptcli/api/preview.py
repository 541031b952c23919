"""Show the rows of a run file as the model will see them: tokens, and which of them are learnt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.finetune import FinetuneConfig
from gptcli.data.example import Example
from gptcli.data.tokenizer import Tokenizer
from gptcli.tasks.dataset import read_examples
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import read_config, read_metadata


@dataclass(frozen=True)
class PreviewRow:
    """An example with its tokens as text."""

    example: Example
    tokens: tuple[str, ...]
    label: str | None

    def as_dict(self) -> dict[str, Any]:
        fields = {"place": self.example.place, "tokens": list(self.tokens), "ids": self.example.ids}
        if self.example.row is not None:
            return fields
        return fields | ({"learnt": self.example.learnt} if self.label is None else {"label": self.label})

    def lines(self) -> list[str]:
        """Return the place with what is learnt, then the tokens; learnt ones stand in [brackets]."""
        if self.example.row is not None:
            head = f"{self.example.place}  {count(len(self.example.ids), 'token')} to answer"
            return [head, "  " + "|".join(map(escape, self.tokens))]
        learnt = f"label {escape(self.label)}" if self.label is not None else f"{sum(self.example.learnt)} learnt"
        cut = ", cut" if self.example.truncated else ""
        words = (
            f"[{escape(token)}]" if is_learnt else escape(token)
            for token, is_learnt in zip(self.tokens, self.example.learnt, strict=True)
        )
        return [f"{self.example.place}  {count(len(self.example.ids), 'token')}, {learnt}{cut}", "  " + "|".join(words)]


def preview(config: FinetuneConfig, *, rows: int, report: Report) -> Iterator[PreviewRow]:
    """Yield the first rows to train on; what is worth knowing of all goes to the report."""
    if config.task == "text":
        raise ConfigError("task: text has no rows to look at; try gptcli encode")
    base = find_checkpoint(config.base)
    tokenizer = Tokenizer.load(base)
    metadata, model = read_metadata(base), read_config(base)
    examples = read_examples(config, tokenizer, metadata, model)
    for line in examples.notes():
        report.message(line)
    for example in itertools.islice(examples.train, rows):
        label = None if example.label is None else examples.task.metadata.labels[example.label]
        for sequence in example.sequences:
            if sequence is not example:
                sequence = sequence._replace(place=f"{sequence.place}: rejected")
            yield PreviewRow(sequence, tuple(examples.task.tokenizer.decode([index]) for index in sequence.ids), label)
