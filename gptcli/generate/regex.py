"""Patterns of text -> automata over bytes.

Understood are characters and . (any but a newline); [...] and [^...] with ranges; escapes \\d \\w \\s \\D \\W \\S (of
ASCII), \\n \\r \\t \\xHH \\uHHHH and \\ before punctuation; (...) and (?:...); | * + ? {m} {m,} {m,n}; ^ at the start
and $ at the end, which change nothing: the whole text must match. There are no back-references, look-arounds, flags or
lazy quantifiers. Characters are those of Unicode, and the automaton reads their UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from gptcli.base.errors import ConfigError
from gptcli.base.escape import shown

MAX_NODES = 20_000  # of the automaton as written, which a repetition multiplies
MAX_NESTING = 100

Ranges = list[tuple[int, int]]  # of code points, both ends included

_LAST = 0x10FFFF
_CLASSES: dict[str, Ranges] = {
    "d": [(48, 57)],
    "w": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "s": [(9, 13), (32, 32)],
}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}


def complement(ranges: Ranges) -> Ranges:
    """The code points that are in none of the ranges."""
    found, begin = [], 0
    for low, high in sorted(ranges):
        if begin < low:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    return [*found, (begin, _LAST)] if begin <= _LAST else found


def utf8_sequences(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Ranges of bytes, one after another, that make up the UTF-8 of the code points low..high, without surrogates."""
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, _LAST)):
        if max(low, first) <= min(high, last):
            yield from _same_length(max(low, first), min(high, last))


def _same_length(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """As above, where all have UTF-8 of one length: cut until every place but the last has all or one of its bytes."""
    for bits in (6, 12, 18):
        mask = (1 << bits) - 1
        if low & ~mask != high & ~mask and (high > 0x7F):
            if low & mask:
                yield from _same_length(low, low | mask)
                yield from _same_length((low | mask) + 1, high)
                return
            if high & mask != mask:
                yield from _same_length(low, (high & ~mask) - 1)
                yield from _same_length(high & ~mask, high)
                return
    yield list(zip(chr(low).encode(), chr(high).encode(), strict=True))


@dataclass
class Nodes:
    """A non-deterministic automaton (Thompson 1968); every node lies on a way to the end."""

    empty: list[list[int]] = field(default_factory=list)  # moves that read nothing
    moves: list[list[tuple[int, int, int]]] = field(default_factory=list)  # (lowest byte, highest, node)

    def add(self) -> int:
        if len(self.empty) >= MAX_NODES:
            raise ConfigError(f"the pattern is too large: more than {MAX_NODES} nodes; repeat less")
        self.empty.append([])
        self.moves.append([])
        return len(self.empty) - 1


Part = tuple[int, int]  # first and last node


def parse(pattern: str) -> tuple[Nodes, Part]:
    """The automaton of a pattern with its first and last node; ConfigError where it is not understood or too large."""
    parser = _Parser(pattern, Nodes())
    part = parser.alternatives()
    if parser.place < len(pattern):
        raise parser.fail("a ) that closes nothing")
    return parser.nodes, part


class _Parser:
    """A pattern, read from left to right; each method adds a part to the automaton and returns its ends."""

    def __init__(self, pattern: str, nodes: Nodes) -> None:
        self.pattern, self.nodes = pattern, nodes
        self.place = self.depth = 0

    def fail(self, what: str) -> ConfigError:
        return ConfigError(f"pattern {shown(self.pattern)}: {what} at character {self.place + 1}")

    def peek(self) -> str:
        return self.pattern[self.place : self.place + 1]

    def take(self) -> str:
        character = self.peek()
        if not character:
            raise self.fail("it ends too early")
        self.place += 1
        return character

    def alternatives(self) -> Part:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise self.fail(f"more than {MAX_NESTING} groups in one another")
        parts = [self.sequence()]
        while self.peek() == "|":
            self.place += 1
            parts.append(self.sequence())
        self.depth -= 1
        return self.either(parts)

    def either(self, parts: list[Part]) -> Part:
        if len(parts) == 1:
            return parts[0]
        first, last = self.nodes.add(), self.nodes.add()
        for begin, end in parts:
            self.nodes.empty[first].append(begin)
            self.nodes.empty[end].append(last)
        return first, last

    def sequence(self) -> Part:
        first = last = self.nodes.add()
        while self.peek() not in ("", "|", ")"):
            begin, end = self.repeated()
            self.nodes.empty[last].append(begin)
            last = end
        return first, last

    def repeated(self) -> Part:
        """An atom with its quantifier: what is repeated is read again for every copy."""
        start = self.place
        part = self.atom()
        end = self.place
        low, high = self.quantifier()
        if (low, high) == (1, 1):
            return part
        after = self.place
        first = last = self.nodes.add()
        copies = low if high is None else high
        leave = []
        for number in range(copies):
            if number >= low:
                leave.append(last)
            if number:
                self.place = start
                part = self.atom()
            self.nodes.empty[last].append(part[0])
            last = part[1]
        assert end <= after
        self.place = after
        if high is None:
            if not copies:  # X*
                self.nodes.empty[last].append(part[0])
                self.nodes.empty[part[1]].append(last)
            else:
                self.nodes.empty[part[1]].append(part[0])
        final = self.nodes.add()
        for node in [*leave, last]:
            self.nodes.empty[node].append(final)
        return first, final

    def quantifier(self) -> tuple[int, int | None]:
        character = self.peek()
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(character, (1, 1))
        if character == "{":
            found = re.compile(r"\{(\d{1,5})(?:(,)(\d{1,5})?)?\}").match(self.pattern, self.place)
            if not found:
                raise self.fail("want {m}, {m,} or {m,n}; a brace of the text is \\{")
            low = int(found[1])
            high = int(found[3]) if found[3] else None if found[2] else low
            if high is not None and high < low:
                raise self.fail("the repetition's bounds are the wrong way round")
            self.place = found.end()
        elif character and character in "*+?":
            self.place += 1
        else:
            return 1, 1
        if self.peek() and self.peek() in "*+?{":
            raise self.fail("a quantifier after a quantifier, or a lazy one: gptcli knows neither")
        return low, high

    def atom(self) -> Part:
        match character := self.take():
            case "(":
                if self.peek() == "?":
                    if self.pattern[self.place : self.place + 2] != "?:":
                        raise self.fail("only (...) and (?:...) are understood")
                    self.place += 2
                part = self.alternatives()
                if self.take() != ")":
                    raise self.fail("a group is not closed")
                return part
            case "[":
                return self.characters(self.bracket())
            case ".":
                return self.characters(complement([(10, 10)]))
            case "\\":
                return self.characters(self.escape())
            case "*" | "+" | "?" | "{":
                self.place -= 1
                raise self.fail("nothing to repeat")
            case "^" if self.place == 1:
                return (node := self.nodes.add()), node
            case "$" if self.place == len(self.pattern):
                return (node := self.nodes.add()), node
            case "^" | "$":
                raise self.fail(f"{character} inside of a pattern; the text's is \\{character}")
            case _:
                return self.characters([(ord(character), ord(character))])

    def escape(self) -> Ranges:
        character = self.take()
        if character.lower() in _CLASSES:
            ranges = _CLASSES[character.lower()]
            return ranges if character.islower() else complement(ranges)
        if character in _CONTROLS:
            return [(_CONTROLS[character],) * 2]
        if character in "xu":
            digits = self.pattern[self.place : self.place + (2 if character == "x" else 4)]
            if not re.fullmatch(r"[0-9a-fA-F]{2}|[0-9a-fA-F]{4}", digits):
                raise self.fail(f"\\{character} wants {2 if character == 'x' else 4} hexadecimal digits")
            self.place += len(digits)
            return [(int(digits, 16),) * 2]
        if character.isascii() and character.isalnum():
            raise self.fail(f"\\{character} is not understood")
        return [(ord(character),) * 2]

    def bracket(self) -> Ranges:
        negated = self.peek() == "^"
        self.place += negated
        ranges: Ranges = []
        begun = self.place
        while self.peek() != "]" or self.place == begun:
            low = self.member()
            if self.peek() == "-" and self.pattern[self.place + 1 : self.place + 2] not in ("]", ""):
                self.place += 1
                high = self.member()
                if not (len(low) == len(high) == 1 and low[0][0] == low[0][1] <= high[0][0] == high[0][1]):
                    raise self.fail("a range that is none")
                low = [(low[0][0], high[0][1])]
            ranges += low
        self.place += 1
        return complement(ranges) if negated else ranges

    def member(self) -> Ranges:
        character = self.take()
        return self.escape() if character == "\\" else [(ord(character), ord(character))]

    def characters(self, ranges: Ranges) -> Part:
        first, last = self.nodes.add(), self.nodes.add()
        for low, high in ranges:
            for sequence in utf8_sequences(low, high):
                node = first
                for number, (lowest, highest) in enumerate(sequence, 1):
                    following = last if number == len(sequence) else self.nodes.add()
                    self.nodes.moves[node].append((lowest, highest, following))
                    node = following
        if not self.nodes.moves[first]:
            raise self.fail("no character at all is meant")
        return first, last


def literal(text: str) -> str:
    """The pattern that matches this text only."""
    return "".join(f"\\{c}" if c in r"\.[](){}|*+?^$" else c for c in text)
