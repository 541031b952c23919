"""Saving, crashing, damaging, resuming and deleting in any order: there is always a checkpoint to go on from.

500 sequences:  pytest -m slow tests/test_retention.py
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Fault, Home
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gptcli.base import fsio
from gptcli.base.fsio import operations
from gptcli.base.fsio.locks import LOCK
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.data.tokenizer import learn_merges
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints, step_directory
from gptcli.train.optimizers import make_optimizers
from gptcli.train.retention import keep, newest_verified, tidy
from gptcli.train.state import TrainState

KEEP = 2
TOKENIZER = learn_merges(["some text to learn " * 20], vocab_size=270)
SHAPE = ModelConfig(num_layers=1, hidden_size=8, num_heads=1, context_length=4, vocab_size=270)


class Crash(BaseException):
    """The process ends here, and nothing after it is done."""


class Crasher:
    """Lets the n-th operation, and all after it, raise: the process is gone, its clean-up too."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, name: str, arguments: tuple[Any, ...], act: Any) -> Any:  # noqa: ARG002
        self.count += 1
        if self.count >= self.at:
            raise Crash
        return act()


def new_state() -> TrainState:
    model = GPT(SHAPE)
    model.initialize(torch.Generator().manual_seed(1))
    optimizers = make_optimizers(model, OptimConfig(name="adamw"), step_tokens=1024, dtype=torch.float32)
    return TrainState(model, optimizers)


class Retention(RuleBasedStateMachine):
    """`good` are the steps whose checkpoints were published and not damaged since."""

    @initialize()
    def begin(self) -> None:
        self.run = Path(tempfile.mkdtemp(prefix="retention-"))
        self.state = new_state()
        self.good: set[int] = set()
        self.saves = 0
        self.size = 0

    def teardown(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)

    def _advance(self) -> None:
        self.state.step += 1
        with torch.no_grad():
            self.state.model.embedding.weight.fill_(self.state.step / 1000)

    def _save(self) -> None:
        checkpoint.save(self.state, self.run, TOKENIZER, {})
        self.saves += 1
        self.good.add(self.state.step)
        keep(self.run, self.state, KEEP)

    @rule(best=st.booleans())
    def save(self, best: bool) -> None:
        self._advance()
        if best:
            self.state.best_step, self.state.best_score = self.state.step, -float(self.state.step)
        self._save()
        self._forget_deleted()
        newest = step_directory(self.run, self.state.step)
        self.size = sum(file.stat().st_size for file in newest.iterdir())
        if self.saves >= 2:
            assert len(checkpoints(self.run)) >= min(2, len(self.good))

    @rule(at=st.integers(1, 45))
    def crash_in_a_save(self, at: int) -> None:
        self._advance()
        target = step_directory(self.run, self.state.step)
        before = target.stat().st_ino if target.is_dir() else None  # a damaged one that this save would replace
        operations.perform = Crasher(at)
        try:
            self._save()
        except Crash:
            pass
        finally:
            operations.perform = operations._directly
        if target.is_dir() and target.stat().st_ino != before:
            self.good.add(self.state.step)
        self._forget_deleted()
        self.resume()

    @precondition(lambda self: len(self.good) > 1)
    @rule(data=st.data())
    def damage_one(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.good)))
        # A crash may leave the writer's lock beside what it published: no part of it, which nobody reads.
        files = sorted(file for file in step_directory(self.run, step).iterdir() if file.name != LOCK)
        file = data.draw(st.sampled_from(files))
        content = bytearray(file.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1
        file.write_bytes(content)
        self.good.discard(step)

    @precondition(lambda self: len(self.good) > 1)
    @rule(data=st.data())
    def delete_one(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(sorted(self.good)))
        shutil.rmtree(step_directory(self.run, step))
        self.good.discard(step)

    @rule()
    def resume(self) -> None:
        """As a new process does: sweep, find the newest that is whole, go on from it."""
        for directory in (self.run, self.run / "checkpoints"):
            if directory.is_dir():
                fsio.sweep(directory)
        self.state = new_state()
        if not self.good:
            return
        found = newest_verified(self.run, lambda _: None)
        assert found == step_directory(self.run, max(self.good))
        checkpoint.restore(self.state, found)
        tidy(self.run, self.state, KEEP)
        self._forget_deleted()
        assert self.state.step == max(self.good)
        assert math.isclose(
            float(self.state.model.embedding.weight[0, 0].detach()), self.state.step / 1000, rel_tol=1e-6
        )

    def _forget_deleted(self) -> None:
        self.good = {step for step in self.good if step_directory(self.run, step).is_dir()}
        assert self.good or not self.saves

    @invariant()
    def the_newest_good_one_loads(self) -> None:
        if getattr(self, "good", None):
            checkpoint.verify(step_directory(self.run, max(self.good)))

    @invariant()
    def no_more_is_kept_than_asked_for(self) -> None:
        if getattr(self, "size", 0):
            used = sum(file.stat().st_size for file in self.run.rglob("*") if file.is_file() and not file.is_symlink())
            assert used <= (KEEP + 3) * self.size  # the best, one half written, one half deleted


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Retention,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_some_sequences_leave_a_checkpoint_to_go_on_from() -> None:
    run_machine(12, 10)


@pytest.mark.slow
def test_500_sequences_leave_a_checkpoint_to_go_on_from() -> None:
    run_machine(500, 10)
    print("\nG17: 500 sequences of up to 10 acts")


def test_a_checkpoint_that_cannot_be_opened_now_is_no_reason_to_go_on_from_an_older_one(tmp_path: Path) -> None:
    state = new_state()
    for state.step in (1, 2):
        checkpoint.save(state, tmp_path, TOKENIZER, {})
    warnings: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    try:
        for more in range(20):  # of files that may be open, until it is enough
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
            with suppress(OSError):
                assert newest_verified(tmp_path, warnings.append) == step_directory(tmp_path, 2)
                break
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert more > 0
    assert not warnings


def test_crashes_in_a_row_between_publishing_and_deleting_do_not_add_up(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=20, save_every=1)
    home.run("control")
    for _ in range(6):
        # A run that goes on points `latest` first at what it found, and then at what it has published.
        moment = 2 if checkpoints(tmp_path / "run") else 1
        ended = home.start("run", "--resume", fault=Fault(moment, only="link")).end()
        assert ended.code == 137, ended
        assert len(checkpoints(tmp_path / "run")) <= KEEP + 2  # the best, and the one just published
    home.run("run", "--resume")
    assert home.same_end("run")
