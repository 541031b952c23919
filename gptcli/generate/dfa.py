"""The deterministic automaton of a pattern, byte by byte: no backtracking, and bounded work for any pattern."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.generate.regex import Nodes, Part, parse

MAX_STATES = 4_000  # that are met on the way
MAX_WORK = 8_000_000  # steps taken to build them, two seconds; a state keeps four bytes for each
DEAD = -1
_UNKNOWN = -2


class Automaton:
    """An automaton that is built as far as it is asked for. State 0 is the start."""

    def __init__(
        self,
        pattern: str,
        parse: Callable[[str], tuple[Nodes, Part]] = parse,
        *,
        what: str = "pattern",
        max_states: int | None = None,
    ) -> None:
        """`parse` makes the automaton over bytes of a pattern, which messages call `what`; ConfigError as it raises."""
        self.pattern, self.work, self.what = pattern, 0, what
        self.max_states = max_states or MAX_STATES
        self.failed = False  # too large for a text that was written
        self.nodes, (first, self.final) = parse(pattern)
        self.states: dict[bytes, int] = {}  # by their members
        self.members: list[bytes] = []  # of each state, the nodes that read on or are the last, four bytes each
        self.table: NDArray[np.int16] = np.full((16, 256), _UNKNOWN, np.int16)  # the state after each byte
        self._state([first])

    def accepts(self, state: int) -> bool:
        """Return whether the text may end in this state."""
        return state != DEAD and self.final in array("i", self.members[state])

    def ended(self, state: int) -> bool:
        """Return whether the text must end in this state."""
        return state == DEAD or not any(self.nodes.moves[node] for node in array("i", self.members[state]))

    def row(self, state: int) -> NDArray[np.int16]:
        """Return the state after each byte, (256,), DEAD where no match is left."""
        if self.table[state, 0] == _UNKNOWN:
            self.table[state] = self._row(state)
        return self.table[state]

    def after(self, state: int, content: bytes) -> int:
        """Return the state after some bytes."""
        for byte in content:
            if state == DEAD:
                return DEAD
            state = int(self.row(state)[byte])
        return state

    def after_each(self, states: NDArray[np.int16], read: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Return the states (N,) after a byte (N,) of each."""
        found: NDArray[np.int16] = self.table[states, read]
        unknown = np.unique(states[found == _UNKNOWN])
        for state in unknown:
            self.row(state)
        return self.table[states, read] if len(unknown) else found

    def explore(self) -> None:
        """Build what is reached first, until half of what it may take is spent: most automata are whole then."""
        state = 0
        while state < len(self.members) < self.max_states // 2 and self.work < MAX_WORK // 2:
            self.row(state)
            state += 1

    def _row(self, state: int) -> list[int]:
        moves = [move for node in array("i", self.members[state]) for move in self.nodes.moves[node]]
        borders = sorted({border for low, high, _ in moves for border in (low, high + 1)})
        row = [DEAD] * 256
        for begin, end in itertools.pairwise(borders):
            self._spend(len(moves))
            targets = {target for low, high, target in moves if low <= begin <= high}
            if targets:
                row[begin:end] = [self._state(targets)] * (end - begin)
        return row

    def _state(self, nodes: Iterable[int]) -> int:
        """Return the state of some nodes and all that are reached from them without reading."""
        found, ahead = set(nodes), list(nodes)
        while ahead:
            reached = self.nodes.empty[ahead.pop()]
            self._spend(1 + len(reached))
            for node in reached:
                if node not in found:
                    found.add(node)
                    ahead.append(node)
        kept = sorted(node for node in found if self.nodes.moves[node] or node == self.final)
        members = array("i", kept).tobytes()
        if members not in self.states:
            if len(self.members) >= self.max_states:
                raise self._problem(f"it needs more than {self.max_states} states")
            self.states[members] = len(self.members)
            self.members.append(members)
            if len(self.members) > len(self.table):
                self.table = np.concatenate((self.table, np.full_like(self.table, _UNKNOWN)))
        return self.states[members]

    def _spend(self, steps: int) -> None:
        self.work += steps
        if self.work > MAX_WORK:
            raise self._problem("it takes too much work")

    def _problem(self, what: str) -> ConfigError:
        self.failed = True
        return ConfigError(f"{self.what} {escape(self.pattern)}: {what}; simplify it")
