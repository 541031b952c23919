"""Patterns of text -> automata over bytes.

Understood are characters and . (any but a newline); [...] and [^...] with ranges; escapes \\d \\w \\s \\D \\W \\S (of
ASCII), \\n \\r \\t \\xHH \\uHHHH and \\ before punctuation; (...) and (?:...); | * + ? {m} {m,} {m,n}; ^ at the start
and $ at the end, which change nothing: the whole text must match. There are no back-references, look-arounds, flags or
lazy quantifiers. Characters are those of Unicode, and the automaton reads their UTF-8.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape

MAX_LENGTH = 16 << 10  # characters of a pattern
MAX_SIZE = 60_000  # nodes and moves of the automaton as written, which a repetition multiplies
MAX_NESTING = 100

Ranges = list[tuple[int, int]]  # of code points, both ends included

_LAST = 0x10FFFF
_CLASSES: dict[str, Ranges] = {
    "d": [(48, 57)],
    "w": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "s": [(9, 13), (32, 32)],
}
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}


def merged(ranges: Ranges) -> Ranges:
    """Return the same code points in as few ranges as can be."""
    return complement(complement(ranges))


def complement(ranges: Ranges) -> Ranges:
    """Return the code points that are in none of the ranges."""
    found, begin = [], 0
    for low, high in sorted(ranges):
        if begin < low:
            found.append((begin, low - 1))
        begin = max(begin, high + 1)
    return [*found, (begin, _LAST)] if begin <= _LAST else found


def utf8_sequences(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Yield sequences of byte ranges that together match the UTF-8 of the code points low..high, without surrogates."""
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, _LAST)):
        if max(low, first) <= min(high, last):
            yield from _same_length(max(low, first), min(high, last))


def _same_length(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the sequences of byte ranges where all code points have UTF-8 of one length.

    The range is cut until every byte but the last takes all of its values or one.
    """
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


Part = tuple[int, int]  # first and last node


@dataclass
class Nodes:
    """A non-deterministic automaton over bytes (Thompson 1968); every node lies on a way to the end."""

    most: int = MAX_SIZE
    size: int = 0
    empty: list[list[int]] = field(default_factory=list)  # moves that read nothing
    moves: list[list[tuple[int, int, int]]] = field(default_factory=list)  # (lowest byte, highest, node)

    def grow(self, by: int) -> None:
        """Count nodes and moves; ConfigError where there are too many."""
        self.size += by
        if self.size > self.most:
            raise ConfigError(f"the pattern is too large: more than {self.most} nodes and moves; repeat less")

    def add(self) -> int:
        """Add a node."""
        self.grow(1)
        self.empty.append([])
        self.moves.append([])
        return len(self.empty) - 1

    def nothing(self) -> Part:
        """Add what matches the empty text."""
        node = self.add()
        return node, node

    def ranges(self, sequences: Iterable[Sequence[tuple[int, int]]]) -> Part:
        """Add what matches any of some sequences of byte ranges."""
        first, last = self.add(), self.add()
        for sequence in sequences:
            self.grow(len(sequence))
            node = first
            for number, (lowest, highest) in enumerate(sequence, 1):
                following = last if number == len(sequence) else self.add()
                self.moves[node].append((lowest, highest, following))
                node = following
        return first, last

    def characters(self, ranges: Ranges) -> Part:
        """Add what matches one character of some ranges of code points."""
        return self.ranges(sequence for low, high in ranges for sequence in utf8_sequences(low, high))

    def text(self, content: bytes) -> Part:
        """Add what matches these bytes only."""
        return self.ranges([[(byte, byte) for byte in content]]) if content else self.nothing()

    def either(self, parts: Sequence[Part]) -> Part:
        """Add what matches any of the parts."""
        if len(parts) == 1:
            return parts[0]
        first, last = self.add(), self.add()
        for begin, end in parts:
            self.empty[first].append(begin)
            self.empty[end].append(last)
        return first, last

    def sequence(self, *parts: Part) -> Part:
        """Add what matches the parts one after another."""
        for (_, end), (begin, _) in itertools.pairwise(parts):
            self.empty[end].append(begin)
        return parts[0][0], parts[-1][1]

    def optional(self, part: Part) -> Part:
        """Add what matches the part or nothing."""
        return self.either([part, self.nothing()])

    def repeated(self, part: Part, separator: Part) -> Part:
        """Add what matches the part once or more, with the separator between."""
        first, last = self.add(), self.add()
        self.empty[first].append(part[0])
        self.empty[part[1]] += [last, separator[0]]
        self.empty[separator[1]].append(part[0])
        return first, last


def parse(pattern: str) -> tuple[Nodes, Part]:
    """Return the automaton of a pattern with its first and last node.

    ConfigError where the pattern is not understood or too large.
    """
    nodes = Nodes()
    return nodes, add_pattern(pattern, nodes, nodes.characters)


def add_pattern(pattern: str, nodes: Nodes, characters: Callable[[Ranges], Part]) -> Part:
    """Add what matches a pattern; `characters` adds what matches one character of some ranges."""
    if len(pattern) > MAX_LENGTH:
        raise ConfigError(f"pattern {escape(pattern)}: {len(pattern):,} characters, more than {MAX_LENGTH:,}")
    parser = _Parser(pattern, nodes, characters)
    part = parser.alternatives()
    if parser.place < len(pattern):
        raise parser.fail("a ) that closes nothing")
    return part


class _Parser:
    """A pattern, read from left to right; each method adds a part to the automaton and returns its ends."""

    def __init__(self, pattern: str, nodes: Nodes, characters: Callable[[Ranges], Part]) -> None:
        self.pattern, self.nodes, self.add_characters = pattern, nodes, characters
        self.place = self.depth = 0
        self.brackets: dict[int, tuple[Ranges, int]] = {}  # those read, by where each begins, with where it ends

    def fail(self, what: str) -> ConfigError:
        return ConfigError(f"pattern {escape(self.pattern)}: {what} at character {self.place + 1}")

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
        return self.nodes.either(parts)

    def sequence(self) -> Part:
        first = last = self.nodes.add()
        while self.peek() not in ("", "|", ")"):
            begin, end = self.repeated()
            self.nodes.empty[last].append(begin)
            last = end
        return first, last

    def repeated(self) -> Part:
        """Return an atom with its quantifier: what is repeated is read again for every copy."""
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
                return self.nodes.nothing()
            case "$" if self.place == len(self.pattern):
                return self.nodes.nothing()
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
        begun = self.place
        if begun not in self.brackets:  # a copy of what is repeated costs no reading
            self.brackets[begun] = self.members(), self.place
        ranges, self.place = self.brackets[begun]
        return ranges

    def members(self) -> Ranges:
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
        return complement(ranges) if negated else merged(ranges)

    def member(self) -> Ranges:
        character = self.take()
        return self.escape() if character == "\\" else [(ord(character), ord(character))]

    def characters(self, ranges: Ranges) -> Part:
        if not any(True for low, high in ranges for _ in utf8_sequences(low, high)):
            raise self.fail("no character at all is meant")
        return self.add_characters(ranges)


def literal(text: str) -> str:
    """Return the pattern that matches this text only."""
    return "".join(f"\\{c}" if c in r"\.[](){}|*+?^$" else c for c in text)
