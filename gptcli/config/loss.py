"""The `loss` section of a run file: what is learnt of the text."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.config.schema import Section, number


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldfishConfig(Section):
    """Learn nothing from some tokens, so that a passage cannot be recited (Hans et al. 2024)."""

    drop_every: int = number(4, "one target in so many is not learnt, always the same of a passage", ge=2, le=1 << 20)
    context: int = number(13, "tokens before a target, of which a hash decides", ge=1, le=256)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(Section):
    """The choice of the targets that count."""

    goldfish: GoldfishConfig | None = None  # null: all
