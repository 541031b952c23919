"""Lines of a pipe: the same however they are cut, and known to be there without waiting; commands answer one by one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import environment
from faults import Home
from hypothesis import given
from hypothesis import strategies as st

from gptcli.base.ready import blocks
from gptcli.cli.lines import Lines


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\n", b"a\n", b"\xef\xbb\xbf", b""]), max_size=12))
def test_lines_are_those_of_the_whole_however_it_is_cut(pieces: list[bytes]) -> None:
    reader, writer = os.pipe()
    lines, found = Lines(reader), []
    try:
        for piece in pieces:
            os.write(writer, piece)
            while lines.ready():
                found.append(next(lines))
        os.close(writer)
        found += lines
        assert lines.ready()
    finally:
        os.close(reader)
    whole = b"".join(pieces).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert b"".join(found) == b"\n".join(whole)
    assert [line.removesuffix(b"\n") for line in found if line] == (whole if whole[-1] else whole[:-1])


@pytest.mark.parametrize("blank", [True, False])
def test_a_line_is_ready_when_it_is_whole(blank: bool) -> None:
    reader, writer = os.pipe()
    lines = Lines(reader, blank=blank)
    assert not lines.ready()
    os.write(writer, b"one")
    assert not lines.ready()
    os.write(writer, b"\ntwo")
    assert lines.ready()
    assert next(lines) == b"one\n"
    assert not lines.ready()
    os.write(writer, b"\n \n")
    assert next(lines) == b"two\n"
    assert lines.ready() == blank
    os.close(writer)
    assert lines.ready()
    assert list(lines) == [b" \n" if blank else b"\n"]
    os.close(reader)


def test_blank_lines_take_no_memory_and_no_time(tmp_path: Path) -> None:
    """Eight million of them before a record, which keeps its number."""
    (tmp_path / "lines").write_bytes(b"\n" * (8 << 20) + b"record\n")
    with (tmp_path / "lines").open("rb") as file:
        lines = Lines(file.fileno(), blank=False)
        while not lines.ready():
            assert len(lines.whole) <= 1
        assert sum(1 for _ in itertools.takewhile(lambda line: line == b"\n", lines)) == 8 << 20
        assert list(lines) == []


def test_a_block_is_what_is_there() -> None:
    answers = iter([True, True, False, True, True, True, True, True])
    assert list(blocks(iter(range(6)), 3, lambda: next(answers))) == [[0, 1, 2], [3], [4, 5]]


@pytest.mark.parametrize("ready", [True, False])
def test_what_went_before_a_bad_item_comes_before_the_error(ready: bool) -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("third")

    found: list[int] = []
    with pytest.raises(ValueError, match="third"):
        found.extend(itertools.chain.from_iterable(blocks(items(), 8, lambda: ready)))
    assert found == [1, 2]


@pytest.mark.parametrize(
    "command", [("generate", "run", "--jsonl", "--max-tokens", "3"), ("score", "run", "--jsonl", "--field", "prompt")]
)
def test_each_record_is_answered_before_the_next_is_there(command: tuple[str, ...], tmp_path: Path) -> None:
    home = Home(tmp_path, steps=1, save_every=1)
    home.run("run")
    program = [sys.executable, "-m", "gptcli", *command]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(program, cwd=tmp_path, env=environment(tmp_path), **pipes) as process:
        assert process.stdin
        assert process.stdout
        for number in range(3):
            record = {"prompt": "a", "id": number} if number != 1 or command[0] == "score" else {"id": number}
            process.stdin.write(json.dumps(record).encode() + b"\n\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert answer["id"] == number
            assert ("error" in answer) == ("prompt" not in record)
        process.stdin.close()
        assert not process.stdout.read()
    assert process.returncode == (0 if command[0] == "score" else 3)
