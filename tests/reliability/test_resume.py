"""A run that is stopped at any step goes on bit for bit: weights, optimizer state and metrics.

Every cut point:  pytest -m slow tests/test_resume.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from faults import Home, digests, metrics

from gptcli.api import pretrain as pretrain_module
from gptcli.base import signals
from gptcli.base.errors import ConfigError
from gptcli.base.report import Report
from gptcli.config import yaml_file
from gptcli.config.train import PretrainConfig
from gptcli.train import run as run_module

STEPS = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """60 steps with accumulation, dropout, samples, and so little text that an epoch ends on the way."""
    home = Home(
        tmp_path_factory.mktemp("resume"),
        steps=STEPS,
        save_every=5,
        sample_every_steps=9,
        sample_tokens=4,
        micro_batch_size=1,
    )
    text = (home.path / "corpus.txt").read_text()
    (home.path / "corpus.txt").write_text(text[:12000])
    threads, before = torch.get_num_threads(), os.getcwd()
    os.chdir(home.path)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home.path / "cache"))
        patch.setattr(run_module, "matmul_flops_per_second", lambda _: None)  # for time: no test looks at it
        patch.setattr(pretrain_module, "keep_freed_memory", lambda: None)
        run(home, "control")
        yield home
    os.chdir(before)
    torch.set_num_threads(threads)


class Cut(Report):
    """Signals this process, as a user would, when the run has come so far."""

    def __init__(self, at: int) -> None:
        self.at = at

    def progress(self, task: str, done: float, total: float | None, note: str = "", *, unit: str = "") -> None:  # noqa: ARG002
        if task == "train" and done == self.at:
            os.kill(os.getpid(), signal.SIGINT)


class CutAfterValidation(Report):
    """Signals this process when the validation of a step has been told, and before it is saved."""

    def __init__(self, at: int) -> None:
        self.at = at

    def message(self, text: str) -> None:
        if text.startswith(f"step {self.at}: validation"):
            os.kill(os.getpid(), signal.SIGINT)


def run(home: Home, name: str, report: Report | None = None, *more: str, resume: bool = False) -> int:
    config = yaml_file.load(PretrainConfig, home.path / "run.yaml", [f"run_dir={home.path / name}", *more]).value
    return pretrain_module.pretrain(config, resume=resume, report=report or Report()).exit_code


def cut_and_resume(home: Home, step: int) -> None:
    name = f"cut-{step}"
    assert run(home, name, Cut(step)) == 130  # after the last step too: its validation is still to come
    run(home, name, resume=True)
    assert_same(home, name)


def assert_same(home: Home, name: str) -> None:
    assert digests(home.newest(name)) == digests(home.newest("control"))
    assert metrics(home.path / name) == metrics(home.path / "control")


@pytest.mark.parametrize("step", [7, 35, 60])
def test_a_run_cut_at_a_step_goes_on_bit_for_bit(home: Home, step: int) -> None:
    cut_and_resume(home, step)


@pytest.mark.slow
def test_a_run_cut_at_every_step_goes_on_bit_for_bit(home: Home) -> None:
    for step in range(1, STEPS + 1):
        cut_and_resume(home, step)
    print(f"\nG4: {STEPS} of {STEPS} cut points")


@pytest.mark.parametrize(("place", "number"), [("validate", 2), ("validate", 9), ("sample", 1), ("sample", 3)])
def test_a_run_stopped_in_the_middle_of_a_validation_or_a_sample_goes_on_bit_for_bit(
    home: Home, place: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, calls = f"{place}-{number}", 0
    inner = {"validate": "validate_texts", "sample": "write_sample"}[place]
    original = getattr(pretrain_module, inner)

    def signalled(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # the signal is handled here, and does not wait for the end
                pass
            raise AssertionError("the signal waited")
        return original(*arguments, **named)

    monkeypatch.setattr(pretrain_module, inner, signalled)
    assert run(home, name) == 143
    monkeypatch.undo()
    run(home, name, resume=True)
    assert_same(home, name)


def test_the_best_of_a_resumed_run_is_that_of_an_unbroken_one(home: Home) -> None:
    def best(name: str) -> dict[str, tuple[int | None, float | None]]:
        found = {path.parent.name: json.loads(path.read_text()) for path in (home.path / name).rglob("training.json")}
        return {step: (training["best_step"], training["best_score"]) for step, training in found.items()}

    how = ("train.steps=20", "train.keep_checkpoints=20")
    assert run(home, "unbroken", None, *how) == 0
    assert run(home, "broken", CutAfterValidation(7), *how) == 130  # it validates at 7 and saves at 5 and 10
    assert run(home, "broken", None, *how, resume=True) == 0
    assert {step: known for step, known in best("broken").items() if step != "step-000007"} == best("unbroken")
    assert os.readlink(home.path / "broken" / "best") == os.readlink(home.path / "unbroken" / "best")


def test_patience_waits_for_a_validation_that_a_signal_broke_off(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [f"optim.{name}=1e-20" for name in ("learning_rate", "embedding_learning_rate", "muon_learning_rate")]
    how = (*rates, "train.patience=1", "train.eval_every_steps=5", "train.sample_every_steps=0")
    assert run(home, "patient", None, *how) == 0
    last = int(home.newest("patient").name.removeprefix("step-"))
    assert last < STEPS
    original = pretrain_module.validate_texts

    def signalled(*arguments: Any) -> Any:
        if (home.path / "impatient" / "checkpoints" / f"step-{last - 5:06d}").exists():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return original(*arguments)

    monkeypatch.setattr(pretrain_module, "validate_texts", signalled)
    assert run(home, "impatient", None, *how) == 143
    monkeypatch.undo()
    assert run(home, "impatient", None, *how, resume=True) == 0
    assert metrics(home.path / "impatient") == metrics(home.path / "patient")


def test_a_run_stopped_between_micro_batches_does_the_step_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = 0, run_module.train

    def counting(*arguments: object, **named: object) -> object:
        objective = named["objective"]

        def signalled(*inputs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 45:  # one of the first two micro-batches, of the four of step 12
                os.kill(os.getpid(), signal.SIGINT)
            return objective(*inputs)  # type: ignore[operator]

        return original(*arguments, **{**named, "objective": signalled})  # type: ignore[arg-type]

    monkeypatch.setattr(run_module, "train", counting)
    assert run(home, "middle") == 130
    assert home.newest("middle").name == "step-000011"
    monkeypatch.undo()
    run(home, "middle", resume=True)
    assert_same(home, "middle")


def test_random_cuts_one_after_another_add_up(home: Home) -> None:
    draw, at = random.Random(7), 0
    while at < STEPS:
        at += draw.randint(1, 20)
        run(home, "many", Cut(at), resume=True)
    run(home, "many", resume=True)
    assert_same(home, "many")


def test_resume_and_force_together_are_refused(home: Home) -> None:
    config = yaml_file.load(PretrainConfig, home.path / "run.yaml", [f"run_dir={home.path / 'control'}"]).value
    with pytest.raises(ConfigError, match="--resume goes on and --force begins again"):
        pretrain_module.pretrain(config, resume=True, force=True, report=Report())


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.stop_on_signals(lambda: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)
