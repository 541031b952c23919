"""SIGINT and SIGTERM in every phase: the right exit code, at once or after the micro-step in hand, and nothing lost.

Ten times each:  pytest -m slow tests/test_signals.py
"""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
from faults import Home, Trial, english

from gptcli.train import checkpoint

LIMIT = 5.0  # seconds to the end, of which saving takes most; a machine at work elsewhere takes longer
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

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
    "retention": ("gptcli.train.retention", "keep", 2),
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
    assert ended.code == CODES[signal.Signals(number)], (phase, ended)
    assert "Traceback" not in ended.err
    sent = float((home.path / "sent").read_text())
    took = time.time() - sent
    assert took < LIMIT, (phase, took)
    begun = list(PHASES).index(phase) > list(PHASES).index("first step")
    found = checkpoint.checkpoints(home.path / "run")
    for path in found:
        checkpoint.verify(path)
    assert bool(found) or not begun, (phase, ended.err)
    home.run("run", "--resume")
    assert home.same_end("run"), phase
    return took


@pytest.mark.parametrize("phase", ["tokenizer training", "first step", "accumulation", "evaluation", "save"])
def test_a_signal_in_any_phase_ends_the_run_in_order_and_it_goes_on_to_the_same_end(home: Home, phase: str) -> None:
    check(home, phase, signal.SIGTERM if len(phase) % 2 else signal.SIGINT)


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
    assert checkpoint.checkpoints(home.path / "run") == []
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
