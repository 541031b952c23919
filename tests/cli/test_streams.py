"""Every command with every kind of stdout: no traceback, the documented exit code, no escape sequence off a terminal.

The commands are those of `gptcli`: a new one needs an entry in USES. All of them with all:  pytest -m slow
tests/test_streams.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from faults import Ended, Home, Trial

from gptcli.cli.main import cli

MOST_SECONDS = 300  # of a command; quickstart collects, trains, measures and writes, whatever its budget is
DOCUMENTED = {0, 1, 2, 3, 4, 5, 130, 141, 143}
RECORD = b'{"prompt": "The river", "max_tokens": 4, "messages": [{"role": "user", "content": "The"}], "text": "one"}\n'

# command -> arguments and stdin; names in braces are files of the fixture, {out} is new for every run
USES: dict[str, tuple[str, bytes]] = {
    "train-tokenizer": ("{corpus} -o {out} --vocab-size 280", b""),
    "encode": ("{tok} {corpus}", b""),
    "decode": ("{tok}", b"72 101 108 108 111 10\n" * 50),
    "count": ("{tok} {corpus}", b""),
    "prepare": ("{corpus} -t {tok} -o {out}", b""),
    "config show": ("{yaml}", b""),
    "config keys": ("", b""),
    "config check": ("{yaml}", b""),
    "plan": ("{yaml} --on h100", b""),
    "pretrain": ("{yaml} -s run_dir={out} -s train.steps=3 --json", b""),
    "import": ("{hf} -o {out}", b""),
    "sweep": ("{yaml}", b""),  # refused: this is a run file
    "export": ("{run} -o {out} --to hf", b""),
    "checkpoint list": ("{run}", b""),
    "checkpoint verify": ("{run}", b""),
    "evaluate": ("{run} {corpus}", b""),
    "score": ("{run}", b"The river.\nThe stone.\n" * 20),
    "generate": ("{run} --jsonl", RECORD * 3),
    "chat": ("{run} --jsonl", RECORD),
    "finetune": ("{yaml} -s run_dir={out}", b""),
    "preview": ("{yaml}", b""),
    "classify": ("{run}", b"The river.\n"),
    "merge": ("{run} -o {out}", b""),
    "runs list": ("{home}", b""),
    "runs compare": ("{run} {run}", b""),
    "plot": ("{run}", b""),
    "serve": ("{run} --host 0.0.0.0", b""),  # refused, since there is no key: it would not end by itself
    "audit": ("{run} --samples 2 --prefixes 2", b""),
    "lineage": ("{run}", b""),
    "watermark-key": ("{run} -o {out}", b""),
    "detect": ("{run} --key {yaml}", b"The river.\n"),  # refused: this is no key
    "corpus report": ("{corpus}", b""),
    "corpus dedup": ("{corpus}", b""),
    "corpus filter": ("{corpus}", b""),
    "corpus decontaminate": ("{corpus} --against {corpus}", b""),
    "corpus extract": ("{corpus}", b""),
    "corpus canaries": ("{corpus}", b""),
    "corpus run": ("{yaml}", b""),
}
HEAVY = {
    "bench machine": ("", b""),
    "bench train": ("{yaml}", b""),
    "bench generate": ("{run}", b""),
    "bench all": ("{yaml}", b""),
    "eval-harness": ("{run} --tasks none", b""),
    "quickstart": ("--budget 20s -o {out}", b""),
}
PLAIN = {"NO_COLOR": {"NO_COLOR": "1"}, "TERM=dumb": {"TERM": "dumb"}, "neither": {"TERM": "xterm"}}


def leaves(group: click.Group = cli, prefix: str = "") -> Iterator[str]:
    """The names of all commands, `config show` for one inside of a group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, f"{prefix}{name} ")
        else:
            yield prefix + name


PRESENT = [name for name in leaves() if name in USES]
HEAVY_PRESENT = [name for name in leaves() if name in HEAVY]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("streams"), steps=3, save_every=3)
    home.run("run")
    for arguments in (
        ["train-tokenizer", "corpus.txt", "-o", "tok.json", "--vocab-size", "300", "-q"],
        ["export", "run", "-o", "hf", "--to", "hf", "-q"],
    ):
        ended = Trial(arguments, home.path, home.env).end()
        assert ended.code == 0, ended
    return home


def use(home: Home, command: str, stdout: str = "file", env: dict[str, str] | None = None) -> Ended:
    text, given = (USES | HEAVY)[command]
    names = {name: str(home.path / file) for name, file in FILES.items()}
    out = home.path / "out"
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    arguments = [part.format(**names, out=out, home=home.path) for part in text.split()]
    trial = Trial([*command.split(), *arguments], home.path, {**home.env, **(env or {})}, None, given, stdout)
    ended = trial.end(MOST_SECONDS)
    assert "Traceback" not in ended.err + ended.out.decode(errors="replace"), (command, stdout, ended)
    assert ended.code in DOCUMENTED, (command, stdout, ended)
    return ended


FILES = {"corpus": "corpus.txt", "tok": "tok.json", "yaml": "run.yaml", "run": "run", "hf": "hf"}


def test_every_command_has_an_entry() -> None:
    missing = set(leaves()) - set(USES) - set(HEAVY)
    assert not missing, f"add to USES in {Path(__file__).name}: {sorted(missing)}"


STDOUTS = ("broken", "closed", "head", "full")
TERMINALS = [{"TERM": "xterm", "CI": "", "NO_COLOR": "1"}, {"TERM": "dumb", "CI": ""}, {"TERM": "xterm", "CI": ""}]


def check_stdout(home: Home, command: str, stdout: str, usual: Ended) -> None:
    ended = use(home, command, stdout)
    name = command.split()[0]
    if not usual.out:
        assert ended.code == usual.code, (stdout, ended)
    elif stdout == "full":
        assert ended.code == 1, ended
        assert f"gptcli {name}: error: stdout: No space left on device" in ended.err
    elif stdout == "closed":
        assert ended.code in (1, 141), ended
    else:
        assert ended.code in ((141,) if stdout == "broken" else (usual.code, 141)), (stdout, ended)
        assert ": error: " not in ended.err or usual.code, (stdout, ended)


def check_terminal(home: Home, command: str, env: dict[str, str], usual: Ended) -> None:
    ended = use(home, command, "terminal", env)
    assert ended.code == usual.code, (env, ended)
    if env["TERM"] == "dumb":
        assert b"\x1b" not in ended.out, ended
    if "NO_COLOR" in env:
        assert not re.search(rb"\x1b\[[0-9;]*3[0-9]m", ended.out), ended


def check_usual(home: Home, command: str, env: dict[str, str]) -> Ended:
    usual = use(home, command, env=env)
    assert b"\x1b" not in usual.out + usual.err.encode()
    for line in usual.err.splitlines() if usual.code else []:
        assert re.match(rf"gptcli {command.split()[0]}: (error|warning): .", line), usual
    return usual


def check_streams(home: Home, command: str) -> None:
    usual = check_usual(home, command, {})
    for env in PLAIN.values():
        assert check_usual(home, command, env).code == usual.code
    for stdout in STDOUTS:
        check_stdout(home, command, stdout, usual)
    for env in TERMINALS:
        check_terminal(home, command, env, usual)


@pytest.mark.parametrize("command", PRESENT)
def test_a_command_behaves_with_two_kinds_of_stdout(command: str, home: Home) -> None:
    number = PRESENT.index(command)
    usual = check_usual(home, command, {})
    check_stdout(home, command, STDOUTS[number % len(STDOUTS)], usual)
    check_terminal(home, command, TERMINALS[number % len(TERMINALS)], usual)


@pytest.mark.slow
@pytest.mark.parametrize("command", PRESENT + HEAVY_PRESENT)
def test_a_command_behaves_with_every_kind_of_stdout(command: str, home: Home) -> None:
    check_streams(home, command)


def test_a_training_run_outlives_the_reader_of_its_progress(home: Home) -> None:
    """stderr is a pipe whose reader has gone, as in `gptcli pretrain run.yaml 2>&1 | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "gptcli", "pretrain", "run.yaml", "-s", "run_dir=alone"]
    done = subprocess.run(command, cwd=home.path, env={**os.environ, **home.env}, stdout=writing, stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    assert home.same_end("alone", "run")


# ------------------------------------------------------------------------------------------------------- one writer


def two_writers(home: Home, number: int) -> None:
    run = f"pair-{number}"
    pair = [home.start(run, "-s", "train.steps=40", "--resume") for _ in range(2)]
    ended = [trial.end() for trial in pair]
    codes = sorted(each.code for each in ended)
    assert codes in ([0, 5], [0, 0]), ended  # both, where one was over before the other began
    for each in ended:
        if each.code == 5:
            (line,) = each.err.splitlines()
            assert re.search(rf"{run}: busy: pid \d+ on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d", line), line
    shutil.rmtree(home.path / run)


def test_of_two_writers_one_is_refused_with_pid_host_and_time(home: Home) -> None:
    for number in range(2):
        two_writers(home, number)


@pytest.mark.slow
def test_of_50_pairs_of_writers_one_is_refused(home: Home) -> None:
    for number in range(50):
        two_writers(home, number)
    print("\nG10: 50 pairs")
