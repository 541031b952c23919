"""The file of `gptcli sweep`: one run file, and the keys of it that are tried with several values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptcli.config.schema import Section, is_name, number, value

MOST_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig(Section):
    """A sweep: every combination of the values, or successive halving over them (Jamieson and Talwalkar 2016)."""

    sweep_dir: str = value(doc="directory that gets a run directory for each trial", path=True)
    run_file: str = value(doc="run file of gptcli pretrain or finetune that every trial changes", path=True)
    vary: tuple[str, ...] = value(
        doc="keys of it with their values, each item as in optim.learning_rate=[0.003, 0.006]"
    )
    metric: str = value("", "number of a validation to compare; empty: bits_per_byte, in fine-tuning loss_nats")
    best: Literal["lowest", "highest"] = value("lowest", "which value of the metric is the best")
    first_steps: int | None = number(
        None, "successive halving (pretrain): steps of the first round; null: all trials run to their end", ge=1
    )
    keep_one_in: int = number(
        2, "a round goes on with one trial in so many, the best, for so many times the steps", ge=2, le=1000
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from (
            (name, "must name a file or directory")
            for name in ("sweep_dir", "run_file")
            if not is_name(getattr(self, name))
        )
        if not self.vary:
            yield "vary", "names no key; write one as in optim.learning_rate=[0.003, 0.006]"
        bad = [item for item in self.vary if not re.fullmatch(r"[\w.]+=\[.+\]", item)]
        if bad:
            yield "vary", f"{bad[0]!r}: want KEY=[VALUE, VALUE, ...]"
        keys = [item.partition("=")[0] for item in self.vary]
        taken = {"run_dir", "train.steps"} if self.first_steps else {"run_dir"}
        for key in keys:
            if keys.count(key) > 1 or key in taken:
                yield "vary", f"{key}: {'is set by the sweep itself' if key in taken else 'is there twice'}"
        if not bad and len(list(itertools.islice(self.trials(), MOST_TRIALS + 1))) > MOST_TRIALS:
            yield "vary", f"more than {MOST_TRIALS:,} combinations; name fewer values"

    def trials(self) -> Iterator[tuple[str, ...]]:
        """Yield the overrides of every trial, as texts KEY=VALUE, in order: the last key changes first."""
        choices = []
        for item in self.vary:
            key, _, listed = item.partition("=")
            choices.append([f"{key}={text}" for text in _values(listed[1:-1])])
        return itertools.product(*choices)


def _values(text: str) -> list[str]:
    """Return the items of a list, which commas outside of brackets part."""
    items, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            items.append("")
        else:
            items[-1] += character
    return [item.strip() for item in items]
