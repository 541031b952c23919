"""Tokens that keep a text on the way to a match of its pattern."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.config.generate import GenerateOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.generate.dfa import DEAD, Automaton
from gptcli.generate.json_schema import MAX_STATES as MAX_SCHEMA_STATES
from gptcli.generate.json_schema import parse_schema
from gptcli.generate.regex import literal

CACHED_PATTERNS = 8
CACHED_MASKS = 256  # of one pattern, each a bit for a token of the vocabulary


class TokenTable:
    """The bytes of every token that adds some, so that an automaton reads all tokens at once.

    `ids` has the tokens (N,), the longest first; `columns[i]` byte i of those that have so many, the first of `ids`.
    """

    def __init__(self, contents: Sequence[bytes], prefix: bytes = b"") -> None:
        """Take the bytes of every token, without `prefix` at their beginning; those that have none are left out."""
        self.size = len(contents)
        known = np.flatnonzero([bool(content) for content in contents])
        contents = [content.removeprefix(prefix) for content in contents]
        lengths = np.array([len(contents[index]) for index in known])
        self.ids = known[np.argsort(-lengths, kind="stable")]
        lengths, longest = -np.sort(-lengths), int(lengths.max())
        padded = b"".join(contents[index].ljust(longest, b"\0") for index in self.ids)
        table = np.frombuffer(padded, np.uint8).reshape(len(self.ids), longest)
        self.columns = [table[: np.count_nonzero(lengths > place), place].copy() for place in range(longest)]


class Constraint:
    """An automaton over a vocabulary: which tokens may come next in each of its states."""

    def __init__(self, automaton: Automaton, table: TokenTable, first: TokenTable | None = None) -> None:
        """Build the automaton as far as it is met first, which may take two seconds. `first`: of the first token of a
        turn, where that is another table."""
        self.automaton, self.tables = automaton, (table, first or table)
        self.packed = functools.lru_cache(CACHED_MASKS)(self._packed)
        automaton.explore()
        self.packed(0, False)

    def forbidden(self, state: int, *, first: bool = False) -> Tensor:
        """Return the tokens after which no match is possible, (V,) bool. `first`: the token begins a turn."""
        bits = np.unpackbits(self.packed(state, first), count=self.tables[first].size)
        return torch.from_numpy(bits.view(np.bool_))

    def ended(self, state: int) -> bool:
        """Return whether the text must end: nothing goes on, or no token of this vocabulary does and it may end."""
        automaton = self.automaton
        return automaton.ended(state) or (automaton.accepts(state) and bool(self.forbidden(state).all()))

    def _packed(self, state: int, first: bool) -> NDArray[np.uint8]:
        table = self.tables[first]
        forbidden = np.ones(table.size, np.bool_)
        alive = np.arange(len(table.ids))  # of the table's ids, those that match so far
        states = np.full(len(alive), state, np.int16)  # after what was read of each
        for column in table.columns:
            longer = np.searchsorted(alive, len(column))
            forbidden[table.ids[alive[longer:]]] = False
            states = self.automaton.after_each(states[:longer], column[alive[:longer]])
            alive, states = alive[:longer][states != DEAD], states[states != DEAD]
            if not len(alive):
                break
        forbidden[table.ids[alive]] = False
        return np.packbits(forbidden)


class Constraints:
    """The constraints of a vocabulary that came up lately."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tables: tuple[TokenTable, TokenTable] | None = None
        self.made: dict[Any, Constraint] = {}

    def of(self, options: GenerateOptions) -> Constraint | None:
        """Return the constraint that the options ask for, if any; ConfigError where it cannot be used."""
        key = options.choices, options.regex, options.json_schema
        found = self.made.pop(key, None)
        if found is None or found.automaton.failed:
            automaton = automaton_of(options)
            if automaton is None:
                return None
            if self.tables is None:
                contents, prefix = self.tokenizer.written_bytes, self.tokenizer.prefix
                table = TokenTable(contents)
                self.tables = table, TokenTable(contents, prefix) if prefix else table
            found = Constraint(automaton, *self.tables)
        while len(self.made) >= CACHED_PATTERNS:
            del self.made[next(iter(self.made))]
        self.made[key] = found  # the last one
        return found


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
    return automaton.accepts(automaton.after(0, text.encode()))
