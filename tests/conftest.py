"""What the tests of the command line share: the real command in a process of its own, and one tiny trained run."""

from __future__ import annotations

import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import Trial


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="cuda, mps or cpu: what tests/device/test_on_device.py runs on")


GPTCLI = [sys.executable, "-m", "gptcli"]
SECONDS = 120  # no command of a test takes so long; one that waits for a person would

# Sizes of the tiny model, as `-s` overrides would give them.
TINY_MODEL = "{num_layers: 2, hidden_size: 32, num_heads: 2, context_length: 32}"


@dataclass(frozen=True)
class Result:
    """How a command ended; stdout as bytes, since it is exact."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    def error(self, code: int, command: str, *words: str) -> list[str]:
        """The lines of stderr, once exit code and form are as they must be and every word is in them."""
        assert self.code == code, f"exit code {self.code}, want {code}; stderr: {self.err}"
        lines = self.err.splitlines()
        assert lines, "nothing was said"
        for line in lines:
            assert re.match(f"gptcli {command}: (error|warning): .*[^ .]$", line), f"{line!r} in {self.err!r}"
        for word in words:
            assert word in self.err, f"{word!r} is not in {self.err!r}"
        return lines


@dataclass(frozen=True)
class Tiny:
    """The run that all tests share; copy what you change."""

    root: Path
    corpus: Path
    tokenizer: Path
    run: Path
    run_file: Path
    checkpoint: Path


RunCli = Callable[..., Result]


WITHOUT = ("CI", "NO_COLOR", "FORCE_COLOR", "GPTCLI_DEBUG", "PYTHONWARNINGS", "PYTHONUNBUFFERED")


def environment(cache: Path, changes: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what changes output, with the cache in a temporary directory."""
    return {
        **{name: value for name, value in os.environ.items() if name not in WITHOUT},
        "XDG_CACHE_HOME": str(cache),
        "TERM": "xterm",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **(changes or {}),
    }


def english(lines: int, seed: int = 1) -> str:
    """Made-up English, a sentence a line; no line says what another says."""
    draw = random.Random(seed)
    words = {
        "who": "the old sailor,a young teacher,the miller,her brother,the grey cat,my neighbour,the clerk".split(","),
        "did": "found,carried,painted,lost,counted,sold,mended,forgot,remembered,hid".split(","),
        "what": "a lantern,three letters,the blue door,an apple,the map,a broken clock,seven stones".split(","),
        "where": "by the river,under the bridge,in the kitchen,at the market,behind the mill,on the hill".split(","),
        "when": "before dawn,in the rain,after supper,all winter,once upon a time,at noon".split(","),
    }
    made = []
    for number in range(lines):
        who, did, what, where, when = (draw.choice(choices) for choices in words.values())
        made.append(f"{who.capitalize()} {did} {what} {where} {when}, {number} days after the {did} one.\n")
    return "".join(made)


def on_a_terminal(arguments: list[str], cache: Path, *, input: bytes, env: dict[str, str] | None = None) -> Result:
    """The command with stdout and stderr on one terminal; what it shows there is `out`."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*GPTCLI, *arguments], stdin=subprocess.PIPE, stdout=follower, stderr=follower, env=environment(cache, env)
    )
    os.close(follower)
    assert process.stdin is not None
    process.stdin.write(input)
    process.stdin.close()
    out = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        out += block
    os.close(leader)
    return Result(process.wait(timeout=60), out, "")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run_cli(session_cache: Path) -> RunCli:
    """`run_cli("count", "tok.json", input="text")`: the real command, with its exit code, stdout and stderr.

    It runs in a process of its own that is forked from one which has imported torch; with `python` it is a new one.
    """

    def run(
        *arguments: object,
        input: str | bytes = b"",
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        python: Sequence[str] | None = None,
    ) -> Result:
        content = input.encode() if isinstance(input, str) else input
        if python is None:
            changes = {**dict.fromkeys(WITHOUT), **environment(session_cache, env)}
            ended = Trial([*map(str, arguments)], cwd or Path.cwd(), env=changes, input=content).end()
            return Result(ended.code, ended.out, ended.err)
        done = subprocess.run(
            [*python, *map(str, arguments)],
            input=content,
            capture_output=True,
            timeout=SECONDS,
            env=environment(session_cache, env),
            cwd=cwd,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def run_bash(session_cache: Path) -> RunCli:
    """A line as users type it, with `gptcli` on the path."""

    def run(line: str, *, cwd: Path | None = None, env: dict[str, str] | None = None, input: bytes = b"") -> Result:
        command = " ".join(f"'{part}'" for part in GPTCLI)
        done = subprocess.run(
            ["bash", "-c", f'gptcli() {{ {command} "$@"; }}\n{line}'],
            input=input,
            capture_output=True,
            timeout=SECONDS,
            env=environment(session_cache, env),
            cwd=cwd,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return run


def tiny_run_file(corpus: Path, run_dir: Path, *, tokenizer: Path | None = None, steps: int = 6) -> str:
    """A run that takes a second."""
    given = f"path: {tokenizer}" if tokenizer else "vocab_size: 300"
    return (
        f"run_dir: {run_dir}\n"
        f"data:\n  train: [{corpus}]\n"
        f"tokenizer:\n  {given}\n"
        f"model: {TINY_MODEL}\n"
        f"train: {{steps: {steps}, batch_size: 4, eval_every_steps: 3, save_every_steps: 3, sample_every_steps: 0}}\n"
        "runtime: {device: cpu, dtype: float32, threads: 1}\n"
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(english(400))
    return path


@pytest.fixture(scope="session")
def tokenizer(corpus: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tok.json"
    result = run_cli("train-tokenizer", corpus, "-o", path, "--vocab-size", 300, "-q")
    assert result.code == 0, result.err
    return path


@pytest.fixture(scope="session")
def tiny(corpus: Path, tokenizer: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A model of 2 layers, 32 wide, after 6 steps of `gptcli pretrain`."""
    root = tmp_path_factory.mktemp("tiny")
    run_file = root / "tiny.yaml"
    run_file.write_text(tiny_run_file(corpus, root / "run", tokenizer=tokenizer))
    result = run_cli("pretrain", run_file, "-q")
    assert result.code == 0, result.err
    return Tiny(root, corpus, tokenizer, root / "run", run_file, root / "run" / "checkpoints" / "step-000006")
