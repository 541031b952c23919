"""Tokens that keep a text on the way to a match of its pattern."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.config.generate import GenerateOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.generate.dfa import DEAD, Automaton
from gptcli.generate.json_schema import MAX_STATES as MAX_SCHEMA_STATES
from gptcli.generate.json_schema import parse_schema
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
    """An automaton over a vocabulary: which tokens may come next in each of its states."""

    def __init__(self, automaton: Automaton, table: TokenTable) -> None:
        self.automaton, self.table = automaton, table
        self.forbidden = functools.lru_cache(CACHED_MASKS)(self._forbidden)

    def _forbidden(self, state: int) -> Tensor:
        """Find the tokens after which no match is possible, (V,) bool. Some token is always left, since every byte is
        one."""
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
    """The constraints of a vocabulary that came up lately."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.table: TokenTable | None = None
        self.made: dict[Any, Constraint] = {}

    def of(self, options: GenerateOptions) -> Constraint | None:
        """Return the constraint that the options ask for, if any; ConfigError where it cannot be used."""
        key = options.choices, options.regex, options.json_schema
        if key in self.made:
            return self.made[key]
        automaton = automaton_of(options)
        if automaton is None:
            return None
        if self.table is None:
            self.table = TokenTable(self.tokenizer)
        if len(self.made) >= CACHED_PATTERNS:
            del self.made[next(iter(self.made))]
        return self.made.setdefault(key, Constraint(automaton, self.table))


def automaton_of(options: GenerateOptions) -> Automaton | None:
    """Return the automaton of all texts that the options allow, None where that is any text.

    ConfigError where a pattern or schema cannot be used.
    """
    if options.choices:
        return Automaton("|".join(map(literal, options.choices)))
    if options.regex is not None:
        return Automaton(options.regex)
    if options.json_schema is not None:
        return Automaton(options.json_schema, parse_schema, what="JSON schema", max_states=MAX_SCHEMA_STATES)
    return None


def most_tokens(options: GenerateOptions) -> int:
    """Return the largest number of new tokens. A choice comes whole, whatever max_tokens: a token has at least a byte
    of it."""
    return max(len(choice.encode()) for choice in options.choices) if options.choices else options.max_tokens


def matches(options: GenerateOptions, text: str) -> bool:
    """Return whether a text is one that the options ask for."""
    automaton = automaton_of(options)
    if automaton is None:
        return True
    state = automaton.after(0, text.encode())
    return state != DEAD and automaton.accepts(state)
