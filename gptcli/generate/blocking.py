"""The passages that a text must not come to say: phrases of a list, and runs of tokens of the training text.

A token that would complete one is not drawn, another is in its place (MemFree decoding, Ippolito et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gptcli.data.grams import Hashes, run_hashes


@dataclass(frozen=True)
class Blocked:
    """Phrases without regard to case, and hashes, sorted, of runs of `length` tokens."""

    phrases: tuple[str, ...] = ()
    length: int = 0
    runs: Hashes = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", tuple(phrase.casefold() for phrase in self.phrases))

    @property
    def tail_bytes(self) -> int:
        """Return how many bytes of a text may belong to a phrase that the next token completes."""
        return 4 * max(map(len, self.phrases), default=0)

    def forbids(self, ids: Sequence[int], tail: bytes, token: int, content: bytes) -> bool:
        """Return whether a token, whose bytes are `content`, would complete what is blocked after ids and bytes."""
        if len(self.runs) and len(ids) >= self.length - 1:
            given = [*ids[len(ids) - self.length + 1 :], token]
            (run,) = run_hashes(np.array(given, dtype=np.int64), self.length)
            place = int(self.runs.searchsorted(run))
            if place < len(self.runs) and self.runs[place] == run:
                return True
        if not self.phrases:
            return False
        text = (tail + content).decode(errors="ignore").casefold()
        return any(phrase in text for phrase in self.phrases)
