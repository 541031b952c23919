"""The deterministic automaton of a pattern, byte by byte: no backtracking, and bounded work for any pattern."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.generate.regex import Nodes, Part, parse

MAX_STATES = 4_000  # that are met on the way
MAX_WORK = 20_000_000  # steps taken to build them, some seconds
DEAD = -1


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
        self.nodes, (first, self.final) = parse(pattern)
        self.states: dict[frozenset[int], int] = {}
        self.members: list[frozenset[int]] = []
        self.rows: list[list[int] | None] = []  # the state after each of the 256 bytes
        self._state([first])

    def accepts(self, state: int) -> bool:
        """Return whether the text may end in this state."""
        return self.final in self.members[state]

    def ended(self, state: int) -> bool:
        """Return whether the text must end in this state."""
        return not any(self.nodes.moves[node] for node in self.members[state])

    def row(self, state: int) -> list[int]:
        """Return the state after each byte, DEAD where no match is left."""
        row = self.rows[state]
        if row is None:
            row = self.rows[state] = self._row(state)
        return row

    def after(self, state: int, content: bytes) -> int:
        """Return the state after some bytes."""
        for byte in content:
            if state == DEAD:
                return DEAD
            state = self.row(state)[byte]
        return state

    def _row(self, state: int) -> list[int]:
        moves = [move for node in self.members[state] for move in self.nodes.moves[node]]
        borders = sorted({border for low, high, _ in moves for border in (low, high + 1)})
        row = [DEAD] * 256
        for begin, end in itertools.pairwise(borders):
            targets = {target for low, high, target in moves if low <= begin <= high}
            self._spend(len(moves))
            if targets:
                row[begin:end] = [self._state(targets)] * (end - begin)
        return row

    def _state(self, nodes: Iterable[int]) -> int:
        """Return the state of some nodes and all that are reached from them without reading."""
        found, ahead = set(nodes), list(nodes)
        while ahead:
            for node in self.nodes.empty[ahead.pop()]:
                if node not in found:
                    found.add(node)
                    ahead.append(node)
        self._spend(len(found))
        members = frozenset(found)
        if members not in self.states:
            if len(self.members) >= self.max_states:
                raise ConfigError(
                    f"{self.what} {escape(self.pattern)}: it needs more than {self.max_states} states; simplify it"
                )
            self.states[members] = len(self.members)
            self.members.append(members)
            self.rows.append(None)
        return self.states[members]

    def _spend(self, steps: int) -> None:
        self.work += steps
        if self.work > MAX_WORK:
            raise ConfigError(f"{self.what} {escape(self.pattern)}: it takes too much work; simplify it")
