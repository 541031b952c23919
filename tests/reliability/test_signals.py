"""SIGINT and SIGTERM in every phase: the right exit code, at once or after the micro-step in hand, and nothing lost.

Ten times each:  pytest -m slow tests/test_signals.py
"""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import Home, Trial, english

from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints

LIMIT = 5.0  # seconds to the end, of which saving takes most; a machine at work elsewhere takes longer
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
BATCH_SYSTEMS = {signal.SIGUSR1: 138, signal.SIGUSR2: 140, signal.SIGXCPU: 152}

# phase -> the module and function that begins it, and the call of it that is signalled
PHASES = {
    "survey": ("gptcli.data.corpus", "decompressed_bytes", 1),
    "tokenizer training": ("gptcli.data.learn_tokenizer", "learn_merges", 1),
    "encode": ("gptcli.data.encode", "_batches", 1),
    "first step": ("gptcli.train.loop", "train_step", 1),
    "accumulation": ("gptcli.api.pretrain", "next_token_nats", 13),
    "evaluation": ("gptcli.tasks.text", "score_documents", 1),
    "sampling": ("gptcli.api.pretrain", "write_sample", 1),
    "save": ("gptcli.train.checkpoint", "save", 1),
    "retention": ("gptcli.train.run", "keep", 2),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("signals"), sample_every_steps=9, sample_tokens=4)
    home.run("control")
    return home


def signal_in(home: Home, phase: str, number: int, *, times: int = 1) -> Trial:
    """A run that is signalled as a phase begins; the data are made anew."""
    shutil.rmtree(home.path / "cache", ignore_errors=True)
    module, function, call = PHASES[phase]
    mark = f"{module}:{function}:{call}:{int(number)}:{times}"
    return Trial(["pretrain", "run.yaml", "-s", "run_dir=run", "--resume"], home.path, {**home.env, "MARK": mark})


def check(home: Home, phase: str, number: int) -> float:
    shutil.rmtree(home.path / "run", ignore_errors=True)
    trial = signal_in(home, phase, number)
    ended = trial.end()
    assert ended.code == (CODES | BATCH_SYSTEMS)[signal.Signals(number)], (phase, ended)
    assert "Traceback" not in ended.err
    sent = float((home.path / "sent").read_text())
    took = time.time() - sent
    assert took < LIMIT, (phase, took)
    begun = list(PHASES).index(phase) > list(PHASES).index("first step")
    found = checkpoints(home.path / "run")
    for path in found:
        checkpoint.verify(path)
    assert bool(found) or not begun, (phase, ended.err)
    home.run("run", "--resume")
    assert home.same_end("run"), phase
    return took


@pytest.mark.parametrize("phase", ["tokenizer training", "first step", "accumulation", "evaluation", "save"])
def test_a_signal_in_any_phase_ends_the_run_in_order_and_it_goes_on_to_the_same_end(home: Home, phase: str) -> None:
    check(home, phase, signal.SIGTERM if len(phase) % 2 else signal.SIGINT)


@pytest.mark.parametrize("number", BATCH_SYSTEMS)
def test_a_signal_of_a_batch_system_ends_the_run_in_order_too(home: Home, number: int) -> None:
    check(home, "accumulation", number)


def test_a_batch_system_may_say_it_again_and_then_ask_to_end(home: Home) -> None:
    """XCPU comes every second, and after USR1 comes TERM: the checkpoint is written all the same."""
    shutil.rmtree(home.path / "run", ignore_errors=True)
    ended = signal_in(home, "save", signal.SIGXCPU, times=3).end()
    assert ended.code == 152, ended
    assert checkpoints(home.path / "run")
    home.run("run", "--resume")
    assert home.same_end("run")


@pytest.mark.slow
def test_ten_signals_of_each_kind_in_every_phase(home: Home) -> None:
    slowest = 0.0
    for phase in PHASES:
        for number in CODES:
            for _ in range(10):
                slowest = max(slowest, check(home, phase, number))
    print(f"\nG8: {len(PHASES)} phases x {len(CODES)} signals x 10, the slowest ended after {slowest:.2f} s")


@pytest.mark.parametrize("number", CODES)
def test_a_second_signal_ends_the_run_at_once(home: Home, number: int) -> None:
    shutil.rmtree(home.path / "run", ignore_errors=True)
    ended = signal_in(home, "save", number, times=2).end()
    took = time.time() - float((home.path / "sent").read_text())
    assert ended.code == CODES[signal.Signals(number)]
    assert took < 1.0
    assert checkpoints(home.path / "run") == []
    home.run("run", "--resume")
    assert home.same_end("run")


def test_a_long_tokenizer_training_does_not_hold_up_a_signal(home: Home, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(
        "".join(chr(97 + (i * i * 7919 + i // 3) % 26) for i in range(3_000_000)) + english(1, 10)
    )
    command = ["train-tokenizer", "corpus.txt", "-o", "tok.json", "--vocab-size", "20000", "-q"]
    trial = Trial(command, tmp_path, home.env)
    time.sleep(1.0)
    assert trial.process.exitcode is None
    started = time.monotonic()
    trial.signal(signal.SIGINT)
    ended = trial.end()
    assert ended.code == 130
    assert ended.err == "gptcli train-tokenizer: interrupted\n"
    assert time.monotonic() - started < LIMIT
    assert not (tmp_path / "tok.json").exists()


# ---------------------------------------------------------------------------------------------- a stderr that is stuck


def start_with(home: Home, run: str, stderr: int, *more: str) -> subprocess.Popen[bytes]:
    """A run without end, with a line on stderr at every validation."""
    shutil.rmtree(home.path / run, ignore_errors=True)
    given = ["train.steps=100000", "train.eval_every_steps=1", "train.save_every_steps=50000", "runtime.threads=1"]
    settings = [part for value in (f"run_dir={run}", *given) for part in ("-s", value)]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "CI")}
    command = [sys.executable, "-m", "gptcli", "pretrain", "run.yaml", *settings, *more]
    return subprocess.Popen(command, cwd=home.path, env={**environment, **home.env}, stderr=stderr)


def wait_for_steps(home: Home, run: str, steps: int) -> None:
    metrics = home.path / run / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not metrics.exists() or metrics.read_bytes().count(b'"kind": "train"') < steps:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_stderr_blocks_saves_the_run(home: Home, number: int) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    process = start_with(home, "stuck", writing)
    os.close(writing)
    wait_for_steps(home, "stuck", 150)  # 150 messages are more than the pipe holds: the run goes on without them
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    os.close(reading)
    (path,) = checkpoints(home.path / "stuck")
    checkpoint.verify(path)


def test_a_stderr_whose_reader_goes_away_costs_neither_the_run_nor_its_checkpoint(home: Home) -> None:
    reading, writing = os.pipe()
    process = start_with(home, "alone", writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    wait_for_steps(home, "alone", 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert checkpoints(home.path / "alone")


def test_a_terminal_that_is_stopped_and_then_closed_costs_neither_the_run_nor_its_checkpoint(home: Home) -> None:
    """Ctrl-S, and later the window is closed: the kernel sends SIGHUP and lets writing fail."""
    leader, follower = pty.openpty()
    process = start_with(home, "closed", follower)
    os.close(follower)
    wait_for_steps(home, "closed", 150)  # nobody reads the terminal's other end
    os.close(leader)
    wait_for_steps(home, "closed", 170)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    assert checkpoints(home.path / "closed")
