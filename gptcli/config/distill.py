"""The `distill` section of a run file: a teacher, and how much is learnt from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gptcli.config.schema import Section, is_name, number, value


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(Section):
    """Learn what a teacher says may come next, beside what does come (Hinton et al. 2015)."""

    teacher: str = value(doc="run or checkpoint with the same tokenizer", path=True, may_change=True)
    alpha: float = number(0.9, "share of the loss that compares with the teacher", gt=0, le=1)
    temperature: float = number(1.0, "divide the logits of both by this before they are compared", gt=0, le=100)
    top_k: int = number(
        32, "likeliest tokens of the teacher to compare one by one; all others count as one outcome", ge=1, le=4096
    )
    cache_bytes: int = number(
        1 << 32,
        "pretrain: what the teacher says is computed once and kept, if it takes no more than this; 0: never",
        ge=0,
        le=1 << 50,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not is_name(self.teacher):
            yield "teacher", "must name a directory"
