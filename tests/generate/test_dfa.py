"""Patterns: the language of Python's re where both understand one, and bounded work for any."""

import itertools
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import ConfigError
from gptcli.generate.dfa import DEAD, Automaton
from gptcli.generate.regex import literal, utf8_sequences

PATTERNS = [
    *("", "a*b", "(ab|c)+", "[a-c]{2,3}", "x{0}b", "é+.", "[^a]b", "(a|b)*abb", r"\d{3}-\d{4}", "a{2,}", "(a?){3}b"),
    *("a|", "[]a]+", r"[\w-]+", "(?:ab)?c*", "[à-ÿ]x", "[😀-😂b]", "^ab$", r"\x61\u00e9?", r"\.\{\}|\S\s", "(|a)+b"),
]


def matches(pattern: str, text: str) -> bool:
    automaton = Automaton(pattern)
    state = automaton.after(0, text.encode())
    return state != DEAD and automaton.accepts(state)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_short_texts_match_as_they_do_in_re(pattern: str) -> None:
    automaton = Automaton(pattern)
    for text in map("".join, itertools.chain.from_iterable(itertools.product("abcx1-é]", repeat=n) for n in range(5))):
        state = automaton.after(0, text.encode())
        found = state != DEAD and automaton.accepts(state)
        assert found == bool(re.fullmatch(pattern, text, re.ASCII)), text


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "é", "(a|b)", "(ab|a)"])
PIECES = st.tuples(ATOMS, st.sampled_from(["", "*", "+", "?", "{2}", "{1,3}", "{0,2}"])).map("".join)


@settings(deadline=None, max_examples=150)
@given(st.lists(PIECES, max_size=6).map("".join), st.text("abé", max_size=8))
def test_any_pattern_matches_as_it_does_in_re(pattern: str, text: str) -> None:
    assert matches(pattern, text) == bool(re.fullmatch(pattern, text))


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20))
def test_a_literal_matches_itself_only(text: str) -> None:
    assert matches(literal(text), text)
    assert not matches(literal(text), text + "a")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF))
def test_utf8_ranges_hold_the_code_points_between_their_ends(one: int, other: int) -> None:
    low, high = sorted((one, other))
    sequences = list(utf8_sequences(low, high))
    near = {point + step for point in (low, high, 0x7F, 0x7FF, 0xFFFF) for step in range(-2, 3)}
    for point in sorted(near | set(range(0, 0x110000, 4999))):
        if 0 <= point <= 0x10FFFF and not 0xD800 <= point < 0xE000:
            content = chr(point).encode()
            inside = any(
                len(s) == len(content) and all(a <= byte <= b for byte, (a, b) in zip(content, s, strict=True))
                for s in sequences
            )
            assert inside == (low <= point <= high)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a|a)*" * 30 + "b",
        "(.*a.{20})|(.*b.{20})",
        "((a{1,100}){1,100}){9}",
        "(x+x+)+y",
        "(((((a*)*)*)*)*)*b",
        ".*" * 300,
        "(.?){800}",
        "(x?){5000}",
        "[" + "".join(map(chr, range(0x100, 0x3000, 2))) + "]{9999}",
        "[a-c" + "a" * 16_000 + "]{9999}",
        "(a?b?c?d?){60}x",
    ],
)
def test_hostile_patterns_take_bounded_time(pattern: str) -> None:
    """They are answered, or refused, in less work than `re` would take for a single long text."""
    chance, started = random.Random(1), time.process_time()
    try:
        automaton = Automaton(pattern)
        state = 0
        for _ in range(3000):
            state = max(0, automaton.after(state, chance.choice([b"a", b"b", b"x"])))
    except ConfigError:
        pass
    assert time.process_time() - started < 5


def test_ranges_that_overlap_are_one() -> None:
    assert Automaton("[a-ca-cb-dx]").nodes.size == Automaton("[a-dx]").nodes.size
    assert matches("[\\d0-9_a-]", "-")


def test_an_automaton_keeps_no_more_than_it_spent() -> None:
    automaton = Automaton("(.?){800}")
    automaton.explore()
    assert sum(map(len, automaton.members)) < 4 * automaton.work
    assert automaton.table.nbytes < 2 * 512 * max(16, len(automaton.members))


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(a", "too early"),
        ("a)", "closes nothing"),
        ("*a", "nothing to repeat"),
        ("a**", "quantifier after"),
        ("a+?", "lazy"),
        ("a{2", "want {m}"),
        ("a{3,2}", "wrong way round"),
        (r"(a)\1", r"\\1 is not understood"),
        ("(?=a)", "only"),
        ("[b-a]", "range"),
        ("[a", "too early"),
        (r"[^\s\S]", "no character"),
        ("a^b", "inside"),
        (r"\xg1", "hexadecimal"),
        ("(" * 200, "100 groups"),
        ("(a{1000}){1000}", "too large"),
        ("a" * 16_385, "16,385 characters"),
    ],
)
def test_a_pattern_that_is_not_understood_says_where(pattern: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Automaton(pattern)
