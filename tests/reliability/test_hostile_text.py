"""Text that may hold anything: never a control token, never a raw control byte on a terminal, never slow to encode.

The full counts:  pytest -m slow tests/test_hostile_text.py
"""

from __future__ import annotations

import json
import math
import random
import re
import time
from pathlib import Path

import pytest
from faults import Home, Trial, english

from gptcli.base.escape import escape, escape_lines
from gptcli.data.tokenizer import Tokenizer, learn_merges

SPECIALS = ["<|user|>", "<|assistant|>"]
PARTS = [
    *("<|endoftext|>", "<|user|>", "<|assistant|>", "<|", "|>", "<|end", "oftext|>", "user|", "a", " ", "\n", "\r\n"),
    *("\t", "é", "日本", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u202e", "\x1b[31m", "\x00", "\x7f", "\x9b31m"),
    *("e\u0301", "\ufeff", "\u2028", "123", "'s", "  ", "^", "\U0010ffff", "\ud7ff", "\ue000"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = english(1, 300) + " <|endoftext|> <|user|> endoftext user <| |> " * 50
    return learn_merges([text], vocab_size=600, specials=SPECIALS)


def hostile_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        parts = [
            draw.choice([*PARTS, chr(draw.randrange(0xD800)), chr(draw.randrange(0xE000, 0x110000))])
            for _ in range(draw.randint(0, 12))
        ]
        made.append("".join(parts))
    return made


def encodes_safely(tokenizer: Tokenizer, count: int) -> None:
    specials = set(tokenizer.specials.values())
    assert len(specials) == 3
    for start in range(0, count, 1000):
        texts = hostile_texts(min(1000, count - start), start)
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            assert specials.isdisjoint(ids), text
            assert tokenizer.decode_bytes(ids) == text.encode(), text


def test_text_never_becomes_a_control_token_and_comes_back_whole(tokenizer: Tokenizer) -> None:
    encodes_safely(tokenizer, 5000)


@pytest.mark.slow
def test_100000_texts_never_become_a_control_token_and_come_back_whole(tokenizer: Tokenizer) -> None:
    encodes_safely(tokenizer, 100_000)
    print("\nG12: 100,000 texts, no control token, all came back")


PATHOLOGICAL = ["a", " ", "^", "1", "\U0001f468\u200d", "\n", "'s", "é", " a", "ab1 "]


def slope(tokenizer: Tokenizer, unit: str, sizes: list[int]) -> tuple[float, float]:
    """Of log time (the best of five) over log size, least squares; and the seconds of the largest."""
    times = []
    for size in sizes:
        text, seconds = unit * (size // len(unit.encode())), []
        for _ in range(5):
            started = time.process_time()
            tokenizer.encode(text)
            seconds.append(time.process_time() - started)
        times.append(max(min(seconds), 1e-6))
    xs, ys = [math.log(size) for size in sizes], [math.log(seconds) for seconds in times]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread, times[-1]


@pytest.mark.slow
def test_no_text_takes_more_than_about_linear_time_to_encode(tokenizer: Tokenizer) -> None:
    steepest = 0.0
    for unit in PATHOLOGICAL:
        found, seconds = slope(tokenizer, unit, [1 << 16, 1 << 18, 1 << 20])
        steepest = max(steepest, found)
        assert found <= 1.2, (unit, found)
        assert seconds <= 2.0, (unit, seconds)
    print(f"\nG12: steepest slope {steepest:.2f} over {len(PATHOLOGICAL)} texts")


# ------------------------------------------------------------------------------------------------------------ terminals

RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
ATTACKS = [
    *(
        "\x1b]0;title\x07",
        "\x1b[2J\x1b[H",
        "\x1b[31m",
        "\x9b31m",
        "\x1bPq\x1b\\",
        "\x1b]8;;http://x\x1b\\a\x1b]8;;\x1b\\",
    ),
    *("\x08\x08", "\r", "\x7f", "\u202egpj.exe", "\u2066x\u2069", "\x0e", "\x05", "\x1b[6n", "\x1b[?1049h", "\x00"),
    *("\u0085", "[red]", "[link=file:///]"),
]


def payloads(count: int) -> list[str]:
    draw = random.Random(13)
    return ["".join(draw.choice([*ATTACKS, "text", " ", "é"]) for _ in range(draw.randint(1, 4))) for _ in range(count)]


def test_1000_payloads_are_shown_without_a_raw_control_character() -> None:
    for payload in payloads(1000):
        assert not RAW.search(escape(payload)), payload
        assert "\n" not in escape(payload)
        assert len(escape(payload * 30)) <= 120
        assert not RAW.search(escape_lines(payload).replace("\r", "\0")), payload
        assert escape_lines("a\n\t" + payload).startswith("a\n\t")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With a tokenizer that has all bytes, and many payloads as one text."""
    home = Home(tmp_path_factory.mktemp("terminal"), steps=2, save_every=2)
    learned = learn_merges([english(1, 50)], vocab_size=260)
    (home.path / "tok.json").write_bytes(learned.content)
    return home


SHOWN = {"TERM": "xterm", "CI": "", "NO_COLOR": "1"}


def on_a_terminal(home: Home, *arguments: str, input: bytes = b"") -> str:
    ended = Trial(list(arguments), home.path, {**home.env, **SHOWN}, None, input, "terminal").end()
    return ended.out.decode().replace("\r\n", "\n")


def test_text_is_escaped_on_a_terminal_and_exact_in_a_pipe(home: Home) -> None:
    text = "\n".join(payloads(1000)) + "\n"
    ids = " ".join(map(str, Tokenizer.load(home.path / "tok.json").encode(text))).encode() + b"\n"
    assert not RAW.search(on_a_terminal(home, "decode", "tok.json", input=ids))
    assert Trial(["decode", "tok.json"], home.path, home.env, None, ids).end().out == text.encode()


@pytest.mark.parametrize("number", range(3))
def test_names_labels_fields_and_values_in_messages_are_escaped(home: Home, number: int) -> None:
    payload = "".join(payloads(60)[number::3]).replace("\0", "").replace("/", "")[:100]
    (home.path / "run2.yaml").write_text(f"{json.dumps(payload)}: 1\nrun_dir: {json.dumps(payload)}\n")
    record = json.dumps({payload: 1}).encode() + b"\n"
    for shown_there in (
        on_a_terminal(home, "count", payload),
        on_a_terminal(home, "count", "tok.json", payload),
        on_a_terminal(home, "config", "check", "run2.yaml"),
        on_a_terminal(home, "config", "show", "run.yaml", "-s", f"{payload}=1"),
        on_a_terminal(home, "config", "show", "run.yaml", "-s", f"data.field={json.dumps(payload)}"),
        on_a_terminal(home, "evaluate", payload),
        on_a_terminal(home, "decode", "tok.json", "--json", input=record),
        on_a_terminal(home, "encode", "tok.json", "--field", payload, input=record),
        on_a_terminal(home, payload),
        on_a_terminal(home, "count", f"--{payload}"),
        on_a_terminal(home, "checkpoint", "list", payload),
    ):
        assert shown_there
        assert not RAW.search(shown_there), shown_there


def test_a_file_with_an_evil_name_is_shown_escaped(home: Home) -> None:
    path = Path(home.path) / "evil\x1b[31m\n.txt"
    path.write_bytes(b"good\nbad \xff\n")
    shown_there = on_a_terminal(home, "count", "tok.json", str(path))
    assert "evil\\x1b[31m\\n.txt:2: byte 0xff" in shown_there
    assert not RAW.search(shown_there)
