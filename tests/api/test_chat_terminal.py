"""Conversations of a person at a terminal. The models are tables, as those of test_chat."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pexpect
import pytest
import torch
from conftest import GPTCLI, RunCli, environment
from table_models import ONE_THREAD, row, table_model

from gptcli.data.conversation import ASSISTANT

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def yes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers `Yes`."""
    return table_model(tmp_path_factory.mktemp("yes") / "model", ["Yes"])


@pytest.fixture(scope="module")
def letter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers with a letter, at random."""
    return table_model(tmp_path_factory.mktemp("letter") / "model", list("abcdefghijklmnopqrstuvwxyz"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers `abcabcabc...`."""
    return table_model(tmp_path_factory.mktemp("endless") / "model", [["abc"]], context_length=50_000)


HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e"


class Terminal:
    """`gptcli chat` on a terminal of its own."""

    def __init__(self, cache: Path, *arguments: object, cwd: Path | None = None) -> None:
        command, *rest = [*GPTCLI, "chat", *map(str, arguments), *ONE_THREAD]
        self.child = pexpect.spawn(
            command, rest, env=environment(cache, {"TERM": "dumb"}), cwd=cwd, timeout=60, encoding="utf-8", echo=False
        )
        self.expect("Ctrl-D ends\r\n")
        self.expect("> ")

    def expect(self, text: str) -> None:
        self.child.expect_exact(text)

    def type(self, line: str, answer: str) -> None:
        """Type a line, see what must be said to it, and then the prompt."""
        self.child.sendline(line)
        self.expect(answer)
        self.expect("\r\n> ")

    def end(self) -> int:
        for _ in range(12):  # what is typed before the prompt waits for a line is lost
            self.child.sendeof()
            if self.child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=5) == 0:
                break
        self.child.close()
        return int(self.child.exitstatus if self.child.signalstatus is None else -self.child.signalstatus)


def test_ctrl_c_stops_an_answer_and_not_the_program(endless: Path, session_cache: Path, tmp_path: Path) -> None:
    terminal = Terminal(session_cache, endless, "--max-tokens", 40_000, cwd=tmp_path)
    terminal.child.sendline("For ever?")
    terminal.expect("abcabc")
    terminal.child.sendintr()
    terminal.expect("(stopped)\r\n> ")
    terminal.type("/set max_tokens=4", "max_tokens=4 ")
    terminal.type("Again?", "abca\r\n(cut: ")
    terminal.type("/save talk.jsonl", "appended 4 messages")
    for _ in range(12):  # at the prompt; readline notices one that comes just before it waits with the next only
        terminal.child.sendintr()
        if terminal.child.expect_exact(["(Ctrl-D or /quit ends)\r\n> ", pexpect.TIMEOUT], timeout=5) == 0:
            break
    assert terminal.end() == 0
    (saved,) = (tmp_path / "talk.jsonl").read_text().splitlines()
    stopped, cut = [message["content"] for message in json.loads(saved)["messages"] if message["role"] == ASSISTANT]
    assert stopped.startswith("abcabc")
    assert len(stopped) < 40_000
    assert cut == "abca"


def test_a_person_retries_takes_back_and_sets(letter: Path, session_cache: Path) -> None:
    terminal = Terminal(session_cache, letter, "--seed", 1)
    terminal.child.sendline("Which?")
    terminal.child.expect(r"([a-z])\r\n> ")
    first, seen = terminal.child.match[1], set()
    for _ in range(6):
        terminal.child.sendline("/retry")
        terminal.child.expect(r"([a-z])\r\n> ")
        seen.add(terminal.child.match[1])
    assert seen - {first}
    terminal.type("/undo", "took back: Which?")
    terminal.type("/history", "nothing was said yet")
    terminal.type("/set temperature=7000", "error: /set: temperature: must be")
    terminal.type("/sett", "did you mean /set?")
    terminal.type("/set seed=5", "seed=5")
    terminal.child.sendline("/quit")
    terminal.child.expect(pexpect.EOF)


def test_the_arrow_key_brings_back_what_was_typed(yes: Path, session_cache: Path) -> None:
    pytest.importorskip("readline")
    terminal = Terminal(session_cache, yes)
    terminal.type("Open on Monday?", "Yes")
    terminal.type("\x1b[A\x7f\x7f\x7f\x7f\x7f\x7f\x7fTuesday?", "Yes")
    terminal.type("/history", "> Open on Monday?\r\nYes\r\n> Open on Tuesday?\r\nYes")
    assert terminal.end() == 0


def test_neither_the_model_nor_a_file_reaches_the_terminal(
    tmp_path: Path, session_cache: Path, run_cli: RunCli
) -> None:
    model = table_model(tmp_path / "model", ["\x1b[31m\x07\x9d\u202e"])
    plain = run_cli("chat", model, *ONE_THREAD, "--temperature", 0, input="?\n")
    assert plain.out == "\x1b[31m\x07\x9d\u202e\n".encode()
    (tmp_path / "talk.jsonl").write_text(row(HOSTILE, HOSTILE, system=HOSTILE))
    terminal = Terminal(session_cache, model, "--temperature", 0, "--load", tmp_path / "talk.jsonl")
    terminal.child.logfile_read = log = (tmp_path / "log").open("w")
    for line in ("?", "/history", "/system", "/undo", "/undo"):
        terminal.child.sendline(line)
        terminal.expect("\r\n> ")
    assert terminal.end() == 0
    log.close()
    said = (tmp_path / "log").read_text()
    assert "\\x1b[31m\\x07\\x9d\\u202e" in said
    assert "\\x1b]0;title" in said
    assert not {"\x1b", "\x07", "\x9b", "\x9d", "\u202e"} & set(said)


def test_a_terminated_chat_ends_with_its_code(endless: Path, session_cache: Path) -> None:
    terminal = Terminal(session_cache, endless, "--max-tokens", 40_000)
    terminal.child.sendline("For ever?")
    terminal.expect("abcabc")
    os.kill(terminal.child.pid, signal.SIGTERM)
    terminal.expect("terminated")
    terminal.child.expect(pexpect.EOF)
    terminal.child.close()
    assert terminal.child.exitstatus == 143
