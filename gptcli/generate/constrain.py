"""Tokens that keep a text on the way to a match of its pattern."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from gptcli.config.generate import GenerateOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.generate.dfa import DEAD, Automaton
from gptcli.generate.regex import literal

CACHED_PATTERNS = 8
CACHED_MASKS = 256  # of one pattern, each of the vocabulary's size


class TokenTable:
    """The bytes of every ordinary token as one array (V, longest), so that an automaton reads all tokens at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        specials = set(tokenizer.specials.values())
        contents = [b"" if index in specials else text for index, text in enumerate(tokenizer.token_bytes)]
        self.lengths = np.array([len(content) for content in contents])
        longest = int(self.lengths.max())
        padded = b"".join(content.ljust(longest, b"\0") for content in contents)
        self.bytes = np.frombuffer(padded, np.uint8).reshape(len(contents), longest)


class Constraint:
    """A pattern over a vocabulary: which tokens may come next in each state of its automaton."""

    def __init__(self, pattern: str, table: TokenTable) -> None:
        self.automaton, self.table = Automaton(pattern), table
        self.forbidden = functools.lru_cache(CACHED_MASKS)(self._forbidden)

    def _forbidden(self, state: int) -> Tensor:
        """(V,) bool: tokens that leave no way to a match. There is one that does: every byte is a token."""
        table = self.table
        states = np.where(table.lengths > 0, state, DEAD)
        alive = np.flatnonzero(table.lengths)
        for place in range(table.bytes.shape[1]):
            alive = alive[(table.lengths[alive] > place) & (states[alive] != DEAD)]
            if not len(alive):
                break
            met, which = np.unique(states[alive], return_inverse=True)
            rows = np.array([self.automaton.row(int(found)) for found in met])
            states[alive] = rows[which, table.bytes[alive, place]]
        return torch.from_numpy(states == DEAD)


class Constraints:
    """The constraints of a vocabulary that came up lately, by their patterns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.table: TokenTable | None = None
        self.made: dict[str, Constraint] = {}

    def of(self, options: GenerateOptions) -> Constraint | None:
        """Return the constraint that the options ask for, if any; ConfigError where its pattern cannot be used."""
        pattern = pattern_of(options)
        if pattern is None:
            return None
        if self.table is None:
            self.table = TokenTable(self.tokenizer)
        if pattern not in self.made:
            constraint = Constraint(pattern, self.table)
            if len(self.made) >= CACHED_PATTERNS:
                del self.made[next(iter(self.made))]
            self.made[pattern] = constraint
        return self.made[pattern]


def pattern_of(options: GenerateOptions) -> str | None:
    """The pattern that the whole text must match, if any."""
    if options.choices:
        return "|".join(map(literal, options.choices))
    return options.regex


def most_tokens(options: GenerateOptions) -> int:
    """New tokens at most. A choice comes whole, whatever max_tokens: a token has at least a byte of it."""
    return max(len(choice.encode()) for choice in options.choices) if options.choices else options.max_tokens


def matches(options: GenerateOptions, text: str) -> bool:
    """Whether a text is one that the options ask for."""
    pattern = pattern_of(options)
    if pattern is None:
        return True
    automaton = Automaton(pattern)
    state = automaton.after(0, text.encode())
    return state != DEAD and automaton.accepts(state)


def check_pattern(options: GenerateOptions) -> None:
    """ConfigError where the options have a pattern that cannot be used."""
    pattern = pattern_of(options)
    if pattern is not None:
        Automaton(pattern)
