"""Prompt lookup (Saxena 2023): guess the next tokens from what followed the same few tokens the last time."""

from __future__ import annotations

from collections.abc import Sequence

GRAM_TOKENS = 3


class Lookup:
    """The tokens of a text, and where each run of GRAM_TOKENS of them was last seen."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        self.ends: dict[tuple[int, ...], int] = {}  # a run -> the place after it, where one more token is known
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        if len(self.ids) >= GRAM_TOKENS:
            self.ends[tuple(self.ids[-GRAM_TOKENS:])] = len(self.ids)
        self.ids.append(token)

    def guess(self, count: int) -> list[int]:
        """Return at most `count` tokens that may come next."""
        place = self.ends.get(tuple(self.ids[-GRAM_TOKENS:]))
        return [] if place is None else self.ids[place : place + count]
