"""In-context learning (Brown et al. 2020, section 2): examples before the prompt, and no step of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gptcli.base.errors import DataError
from gptcli.base.units import count
from gptcli.evaluate.items import Item

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Shots:
    """The source of the examples: `count` of `pool` for each row, drawn anew with the seed and the row's number."""

    pool: Sequence[Item]
    count: int
    seed: int

    def before(self, item: Item, number: int) -> list[str]:
        """Draw the examples for row `number`, never that row itself or one with its prompt; DataError if there are too
        few."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.pool))
        others = (shot for index in order if (shot := self.pool[int(index)]).prompt != item.prompt)
        chosen = [shot.shot for shot, _ in zip(others, range(self.count), strict=False)]
        if len(chosen) < self.count:
            raise DataError(
                f"{item.place}: only {count(len(chosen), 'example')} beside this row, want {self.count}; lower --shots"
            )
        return chosen


@dataclass(frozen=True)
class Context:
    """The text that the model is given, and the number of examples left out to make it fit."""

    text: str
    dropped: int


def join(shots: Sequence[str], prompt: str, fits: Callable[[str], bool]) -> Context:
    """Join examples and prompt, dropping as many of the first examples as it takes to fit; the prompt alone may not
    fit."""
    for dropped in range(len(shots)):
        text = SEPARATOR.join([*shots[dropped:], prompt])
        if fits(text):
            return Context(text, dropped)
    return Context(prompt, len(shots))
