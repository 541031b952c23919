"""A run that is killed, at any moment and at any file operation, goes on to the weights of the unbroken run.

The full counts, minutes long:  pytest -m slow tests/test_kills.py
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import Fault, Home, Trial, digests, leftovers, read_log

from gptcli.base import fsio
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints

KILLED = 137  # of an os._exit; a real kill -9 gives minus 9


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With the unbroken run in `control`, and its operations in `log`."""
    home = Home(tmp_path_factory.mktemp("kills"))
    home.run("warm")  # makes the data in the cache
    home.run("control", fault=Fault(log=str(home.path / "log")))
    return home


def steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints(run)]


def assert_published_checkpoints_are_whole(run: Path) -> None:
    for path in checkpoints(run):
        checkpoint.verify(path)


# ------------------------------------------------------------------------------------------------ every file operation


def crash_at(home: Home, number: int, how: str) -> None:
    """Crash a run at one operation, resume it, and compare; nothing temporary is left afterwards."""
    run = f"crash-{number}-{how}"
    ended = home.start(run, fault=Fault(number, how)).end()
    assert ended.code == KILLED, ended
    assert_published_checkpoints_are_whole(home.path / run)
    before = set(steps(home.path / run))
    home.run(run, "--resume")
    assert home.same_end(run), (number, how)
    assert leftovers(home.path / run) == []
    assert not before or max(before) <= home.steps
    shutil.rmtree(home.path / run)


def chosen(total: int, count: int) -> list[int]:
    return sorted(random.Random(1).sample(range(1, total + 1), count))


def test_a_crash_at_any_of_some_operations_of_a_run_loses_nothing(home: Home) -> None:
    total = len(read_log(home.path / "log"))
    for number in chosen(total, 3):
        crash_at(home, number, random.Random(number).choice(["before", "after", "middle"]))


@pytest.mark.slow
def test_a_crash_at_every_operation_of_a_run_loses_nothing(home: Home) -> None:
    log = read_log(home.path / "log")
    trials = 0
    for number, (name, _) in enumerate(log, 1):
        for how in ("before", "after", "middle") if name == "write" else ("before", "after"):
            crash_at(home, number, how)
            trials += 1
    print(f"\nG2 run: {trials} crash points of {len(log)} operations")


OTHERS = {
    "train-tokenizer": ["train-tokenizer", "corpus.txt", "-o", "out/tok.json", "--vocab-size", "280", "--force", "-q"],
    "prepare": ["prepare", "corpus.txt", "-t", "tok.json", "-o", "out/data", "--force", "-q"],
}


@pytest.mark.parametrize("command", OTHERS)
def test_a_crash_at_any_of_some_operations_of_a_command_leaves_the_old_output_or_the_new(
    command: str, home: Home, tmp_path: Path
) -> None:
    crash_at_operations(command, home, tmp_path, 5)


@pytest.mark.slow
@pytest.mark.parametrize("command", OTHERS)
def test_a_crash_at_every_operation_of_a_command_leaves_the_old_output_or_the_new(
    command: str, home: Home, tmp_path: Path
) -> None:
    crash_at_operations(command, home, tmp_path, None)


def crash_at_operations(command: str, home: Home, tmp_path: Path, count: int | None) -> None:
    """Crash before and after operations, `count` of them or all; the next run leaves nothing temporary."""
    shutil.copy(home.path / "corpus.txt", tmp_path)
    made = ["train-tokenizer", "corpus.txt", "-o", "tok.json", "--vocab-size", "290", "-q"]
    assert Trial(made, tmp_path, home.env).end().code == 0
    arguments = OTHERS[command]
    log = tmp_path / "log"
    assert Trial(arguments, tmp_path, home.env, Fault(log=str(log))).end().code == 0
    # The second run replaces an output, of another text, and has more operations than the first.
    log.unlink()
    shutil.copytree(tmp_path / "out", tmp_path / "old")
    old = content(tmp_path / "out")
    with (tmp_path / "corpus.txt").open("a") as file:
        file.write("Another river finds another stone. " * 200)
    assert Trial(arguments, tmp_path, home.env, Fault(log=str(log))).end().code == 0
    new = content(tmp_path / "out")
    assert new != old
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(tmp_path / "old", tmp_path / "out")
    total = len(read_log(log))
    for number in range(1, total + 1) if count is None else chosen(total, min(count, total)):
        for how in ("before", "after"):
            ended = Trial(arguments, tmp_path, home.env, Fault(number, how)).end()
            assert ended.code == KILLED, (number, how, ended)
            assert content(tmp_path / "out") in (old, new), (number, how)
            assert Trial(arguments, tmp_path, home.env).end().code == 0, (number, how)
            assert content(tmp_path / "out") == new, (number, how)
            shutil.rmtree(tmp_path / "out")
            shutil.copytree(tmp_path / "old", tmp_path / "out")
            assert leftovers(tmp_path) == [], (number, how)
    print(f"\nG2 {command}: {2 * total} crash points")


def content(directory: Path) -> dict[str, bytes]:
    """Every file that a user sees, by its path, but a lock that its owner had no time to remove."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
        and path.name != fsio.LOCK
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    }


# ------------------------------------------------------------------------------------------------------- random moments


def kill_at_random(home: Home, number: int, seconds: float) -> int:
    """Up to five kills of one run at random moments; -> how many hit. The run must end like the control."""
    draw, run, kills = random.Random(number), f"random-{number}", 0
    for _ in range(draw.randint(1, 5)):
        seen = max(steps(home.path / run), default=0)
        trial = home.start(run, "--resume")
        trial.process.join(draw.uniform(0, seconds))
        alive = trial.process.exitcode is None
        trial.signal(signal.SIGKILL)
        ended = trial.end()
        kills += alive and ended.code == -signal.SIGKILL
        assert "error" not in ended.err, ended
        assert_published_checkpoints_are_whole(home.path / run)
        assert max(steps(home.path / run), default=0) >= seen
    home.run(run, "--resume")
    assert home.same_end(run), number
    shutil.rmtree(home.path / run)
    return kills


def seconds_of_a_run(home: Home) -> float:
    started = time.monotonic()
    home.run("timed")
    shutil.rmtree(home.path / "timed")
    return time.monotonic() - started


def test_a_run_killed_at_random_moments_ends_like_the_unbroken_one(home: Home) -> None:
    seconds = seconds_of_a_run(home)
    for number in range(2):
        kill_at_random(home, number, seconds)


@pytest.mark.slow
def test_180_runs_killed_at_random_moments_end_like_the_unbroken_one(home: Home) -> None:
    seconds = seconds_of_a_run(home)
    kills = sum(kill_at_random(home, number, seconds) for number in range(180))
    print(f"\nG1: 180 runs, {kills} kills that hit")
    assert kills >= 180


@pytest.mark.slow
def test_20_real_processes_killed_at_random_moments_end_like_the_unbroken_one(home: Home) -> None:
    environment = {**os.environ, **home.env}
    environment.pop("OMP_NUM_THREADS", None)
    environment.pop("PYTHONUNBUFFERED", None)
    kills = 0
    whole = 0.0  # seconds of a run that is left alone
    for number in range(21):
        draw, run = random.Random(number), f"real-{number}"
        command = [sys.executable, "-m", "gptcli", "pretrain", "run.yaml", "-s", f"run_dir={run}", "--resume", "-q"]
        started = time.monotonic()
        trials = 0
        while True:
            process = subprocess.Popen(command, cwd=home.path, env=environment, start_new_session=True)
            trials += 1
            try:
                process.wait(timeout=draw.uniform(0.3, 1) * whole if number and trials < 8 else None)
                whole = whole or time.monotonic() - started
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
                assert_published_checkpoints_are_whole(home.path / run)
        assert process.returncode == 0
        assert digests(home.newest(run)) == digests(home.newest("control"))
    print(f"\nG1: 20 real runs, {kills} kills")
    assert kills >= 20


def test_a_temporary_file_of_a_writer_that_lives_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    with fsio.replacing(path) as first:
        first.write(b"first")
        fsio.write_file(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]
