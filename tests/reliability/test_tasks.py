"""Every kind of training, with dropout and without, on the path of two threads: the same seed gives the same weights,
and a run that crashed, was signalled or found its newest checkpoint damaged goes on to them.

Many moments:  pytest -m slow tests/reliability/test_tasks.py
"""

from __future__ import annotations

import random
import shutil
import signal

import pytest
from faults import Fault, Home, Trial, leftovers, read_log

from gptcli.train.checkpoint_paths import checkpoints

KINDS = [(task, dropout) for task in ("pretrain", "classify", "chat") for dropout in (0.0, 0.1)]
KINDS.append(("reward", 0.0))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    task, dropout = request.param
    home = Home(tmp_path_factory.mktemp("tasks"), task=task, dropout=dropout)
    home.run("warm")
    home.run("control", fault=Fault(log=str(home.path / "log")))
    return home


def crash(home: Home, number: int, how: str) -> None:
    assert home.start("run", fault=Fault(number, how)).end().code == 137
    home.run("run", "--resume")
    assert home.same_end("run"), (number, how)
    assert leftovers(home.path / "run") == []
    shutil.rmtree(home.path / "run")


def stop(home: Home, function: str, call: int, number: int) -> None:
    mark = f"{function}:{call}:{int(number)}:1"
    command = "pretrain" if home.task == "pretrain" else "finetune"
    ended = Trial([command, "run.yaml", "-s", "run_dir=run"], home.path, {**home.env, "MARK": mark}).end()
    assert ended.code == 128 + number, ended
    home.run("run", "--resume")
    assert home.same_end("run"), (function, call)
    shutil.rmtree(home.path / "run")


def test_the_same_seed_gives_the_same_weights(home: Home) -> None:
    assert home.same_end("warm")


def test_a_crash_and_a_signal_cost_no_bit(home: Home) -> None:
    total = len(read_log(home.path / "log"))
    crash(home, random.Random(str(home.path)).randint(total // 2, total - 10), "before")
    stop(home, "gptcli.train.loop:train_step", 8, signal.SIGTERM)


def test_a_damaged_checkpoint_costs_no_bit(home: Home) -> None:
    run = home.copy("control", "run")
    newest = checkpoints(run)[0] / "training.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert "going on from" in home.run("run", "--resume").err
    assert home.same_end("run")
    shutil.rmtree(run)


@pytest.mark.slow
def test_crashes_at_many_operations_and_signals_at_every_step_cost_no_bit(home: Home) -> None:
    total = len(read_log(home.path / "log"))
    numbers = sorted(random.Random(1).sample(range(1, total + 1), 40))
    for number in numbers:
        crash(home, number, random.Random(number).choice(["before", "after", "middle"]))
    for call in range(1, home.steps + 1):
        stop(home, "gptcli.train.loop:train_step", call, random.Random(call).choice([2, 10, 15]))
    print(f"\n{home.task}: {len(numbers)} crashes of {total} operations, {home.steps} signals")
