"""A full, broken or read-only disk: one line that names the file and what to do, exit 1, and nothing lost.

Every write of a run:  pytest -m slow tests/test_full_disk.py
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from faults import Fault, Home, Trial, leftovers, read_log

from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints

ERRORS = {"ENOSPC": "No space left", "EIO": "Input/output", "EROFS": "Read-only", "EDQUOT": "quota"}
FAILING = ("create", "write", "sync", "rename", "mkdir", "open", "link")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("full"), steps=11, save_every=3)
    home.run("warm")
    home.run("control", fault=Fault(log=str(home.path / "log")))
    return home


def fail_at(home: Home, number: int, error: str) -> None:
    """Let one operation of a run fail; the run before it must be whole and be gone on with."""
    run = f"fail-{number}-{error}"
    ended = home.run(run, "-q", code=1, fault=Fault(number, error))
    (line,) = [line for line in ended.err.splitlines() if "warning" not in line]
    assert line.startswith(f"gptcli pretrain: error: {run}"), line
    assert ERRORS[error] in line
    assert ".tmp-" not in line
    for path in checkpoints(home.path / run):
        checkpoint.verify(path)
    assert [name for name in leftovers(home.path / run) if ".trash-" not in name] == []
    home.run(run, "--resume")
    assert home.same_end(run), (number, error)
    assert leftovers(home.path / run) == []
    shutil.rmtree(home.path / run)


def failing(home: Home) -> list[int]:
    return [number for number, (name, _) in enumerate(read_log(home.path / "log"), 1) if name in FAILING]


def test_some_operations_that_fail_end_the_run_with_one_line(home: Home) -> None:
    draw = random.Random(2)
    for number, error in zip(draw.sample(failing(home), 2), ERRORS, strict=False):
        fail_at(home, number, error)


def test_a_link_that_cannot_be_renamed_into_place_leaves_nothing(home: Home) -> None:
    renames = [
        number
        for number, (name, arguments) in enumerate(read_log(home.path / "log"), 1)
        if name == "rename" and "latest" in str(arguments)
    ]
    fail_at(home, renames[0], "ENOSPC")


@pytest.mark.slow
def test_every_operation_that_fails_ends_the_run_with_one_line(home: Home) -> None:
    numbers = failing(home)
    for number in numbers:
        for error in ERRORS:
            fail_at(home, number, error)
    print(f"\nG7: {len(numbers)} operations x {len(ERRORS)} errors")


OTHERS = {
    "train-tokenizer": ["train-tokenizer", "corpus.txt", "-o", "tok.json", "--vocab-size", "280", "-q"],
    "prepare": ["prepare", "corpus.txt", "-t", "other.json", "-o", "data", "-q"],
}


@pytest.mark.parametrize("command", OTHERS)
def test_every_operation_of_a_command_that_fails_is_one_line_and_leaves_the_old_output(
    command: str, home: Home, tmp_path: Path
) -> None:
    shutil.copy(home.path / "corpus.txt", tmp_path)
    made = ["train-tokenizer", "corpus.txt", "-o", "other.json", "--vocab-size", "290", "-q"]
    assert Trial(made, tmp_path, home.env).end().code == 0
    log = tmp_path / "log"
    assert Trial(OTHERS[command], tmp_path, home.env, Fault(log=str(log))).end().code == 0
    output = tmp_path / OTHERS[command][3 if command == "train-tokenizer" else 5]
    numbers = [number for number, (name, _) in enumerate(read_log(log), 1) if name in FAILING]
    for number in numbers:
        error = list(ERRORS)[number % len(ERRORS)]
        shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        ended = Trial(OTHERS[command], tmp_path, home.env, Fault(number, error)).end()
        assert ended.code == 1, (number, error, ended)
        (line,) = ended.err.splitlines()
        assert line.startswith(f"gptcli {command}: error: "), line
        assert ERRORS[error] in line
        assert ".tmp-" not in line
        assert Trial(OTHERS[command], tmp_path, home.env).end().code == 0
        assert leftovers(tmp_path) == []
