"""Processes that have a part of the model each: losses of one process, checkpoints that any number goes on with.

All pairs of numbers, minutes long:  pytest -m slow tests/reliability/test_sharded.py
"""

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from faults import Fault, Home, leftovers, metrics
from ranks import ONE_THREAD, Ranks, run_in
from test_processes import PAUSED, children, gone, start, wait_for_metrics

from gptcli.api.open_model import load
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints

EXACT = ("-s", "runtime.dtype=float32")
SHARDED = ("-s", "parallel.shard=true", *EXACT)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With the runs of one process in `one`, and of two in `two`; both write a sample."""
    home = Home(tmp_path_factory.mktemp("sharded"), micro_batch_size=1, sample_every_steps=10, sample_tokens=4)
    home.run("one", *ONE_THREAD, *EXACT)
    run_in(home, "two", 2, *SHARDED)
    return home


def losses(home: Home, run: str) -> list[object]:
    lines = [facts for kind, _, facts in metrics(home.path / run) if kind in ("train", "validation")]
    return [facts[name] for facts in lines for name in ("loss_nats", "reward", "kl_nats") if name in facts]


def files(home: Home, run: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.newest(run).glob("*.safetensors")}


def go_on(home: Home, run: str, count: int, *more: str) -> None:
    if count == 1:
        assert home.run(run, *ONE_THREAD, *EXACT, *more, "--resume").code == 0
    else:
        run_in(home, run, count, *SHARDED, *more, "--resume")


def stop_at(home: Home, run: str, count: int, step: int, *more: str) -> None:
    """Run until a step or a few more are done."""
    ranks = Ranks(home, run, count, *(SHARDED if count > 1 else EXACT), *more)
    ranks.wait_for_step(step)
    ranks.signal(signal.SIGTERM)
    ended = ranks.end()
    assert [each.code for each in ended] in ([143] + [0] * (count - 1), [0] * count), ended


def test_losses_are_those_of_one_process(home: Home) -> None:
    assert losses(home, "two") == pytest.approx(losses(home, "one"), rel=1e-4)


def test_every_process_writes_a_part_that_any_command_reads(home: Home) -> None:
    names = {f"{kind}-0000{number}-of-00002.safetensors" for kind in ("model", "training") for number in (1, 2)}
    assert files(home, "two").keys() == names
    checkpoint.verify(home.newest("two"))
    whole, parts = (load(home.path / run)[0].state_dict() for run in ("one", "two"))
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=0, atol=2e-3)  # Muon turns rounding into small steps


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 1), (1, 3)])
def test_a_run_goes_on_with_what_another_number_wrote(home: Home, first: int, second: int) -> None:
    run = f"from-{first}-to-{second}"
    stop_at(home, run, first, 8)
    go_on(home, run, second)
    assert losses(home, run) == pytest.approx(losses(home, "one"), rel=1e-3)
    if first == second == 2:
        assert files(home, run) == files(home, "two")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), list(itertools.product((1, 2, 4), repeat=2)))
def test_any_number_goes_on_with_what_any_other_wrote(home: Home, first: int, second: int) -> None:
    run = f"all-from-{first}-to-{second}"
    stop_at(home, run, first, 8)
    go_on(home, run, second)
    assert losses(home, run) == pytest.approx(losses(home, "one"), rel=1e-3)
    if first == second:
        (run_in(home, "unbroken-4", 4, *SHARDED) if first == 4 else None)
        unbroken = {1: "one", 2: "two", 4: "unbroken-4"}[first]
        assert files(home, run) == files(home, unbroken)


def test_a_killed_process_ends_the_others_and_the_run_goes_on(home: Home) -> None:
    ranks = Ranks(home, "killed", 2, *SHARDED)
    ranks.wait_for_step(6)
    ranks.signal(signal.SIGKILL, 1)
    ended = ranks.end()
    assert [each.code for each in ended] in ([1, -signal.SIGKILL], [0, 0]), ended
    assert len(ranks.errors(ended)) <= 1, ended
    for path in checkpoints(home.path / "killed"):
        checkpoint.verify(path)
    go_on(home, "killed", 2)
    assert files(home, "killed") == files(home, "two")
    assert leftovers(home.path / "killed") == []


def test_a_full_disk_of_any_process_ends_all_with_one_line(home: Home) -> None:
    ranks = Ranks(home, "full", 2, *SHARDED, fault=Fault(at=3, how="ENOSPC", only="write"), at=1)
    ended = ranks.end()
    assert [each.code for each in ended] == [75, 1], ended
    (line,) = ranks.errors(ended)
    assert "No space left on device" in line
    for path in checkpoints(ranks.run):  # those before
        checkpoint.verify(path)
    assert leftovers(ranks.run) == []


def test_nothing_is_left_behind_by_kill_9(home: Home) -> None:
    process = start(home, "launched", "gptcli", more=("--nproc", "2", *SHARDED, *PAUSED))
    wait_for_metrics(home.path / "launched")
    workers = children(process.pid)
    os.kill(workers[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert gone(workers)
    assert process.returncode == 1
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert "process 1 of 2 was ended by SIGKILL" in line


def test_a_run_with_a_budget_completes_its_schedule(tmp_path: Path) -> None:
    home = Home(tmp_path)
    document = yaml.safe_load((home.path / "run.yaml").read_text())
    document["train"] = {"budget": "6s"}
    (home.path / "run.yaml").write_text(yaml.safe_dump(document))
    run_in(home, "run", 2, *SHARDED)
    kinds = [kind for kind, _, _ in metrics(home.path / "run")]
    assert kinds[-1] == "end"
    assert "validation" in kinds
    assert set(files(home, "run")) >= {"model-00001-of-00002.safetensors"}


@pytest.mark.parametrize("task", ["classify", "chat", "text"])
def test_fine_tuning_has_the_losses_of_one_process(tmp_path: Path, task: str) -> None:
    home = Home(tmp_path, task=task)
    assert home.run("one", *ONE_THREAD, *EXACT).code == 0
    ended = Ranks(home, "two", 2, *SHARDED).end()
    assert [each.code for each in ended] == [0, 0], ended
    assert losses(home, "two") == pytest.approx(losses(home, "one"), rel=1e-3)


@pytest.mark.parametrize("base_dtype", ["auto", "int8"])
@pytest.mark.parametrize("task", ["classify", "chat"])
def test_adapters_have_the_losses_of_one_process(tmp_path: Path, task: str, base_dtype: str) -> None:
    home = Home(tmp_path, task=task)
    adapters = ("-s", "lora.rank=4", "-s", f"lora.base_dtype={base_dtype}")
    assert home.run("one", *ONE_THREAD, *EXACT, *adapters).code == 0
    ended = Ranks(home, "two", 2, *SHARDED, *adapters).end()
    assert [each.code for each in ended] == [0, 0], ended
    assert losses(home, "two") == pytest.approx(losses(home, "one"), rel=1e-3)
    checkpoint.verify(home.newest("two"))
    assert any((home.newest("two") / "adapter_model.safetensors").read_bytes())


@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2), (2, 2)])
def test_any_number_goes_on_with_adapters(tmp_path: Path, first: int, second: int) -> None:
    home, adapters = Home(tmp_path, task="chat"), ("-s", "lora.rank=4")  # and with what it has for new tokens
    unbroken = ["one", "two"][first == second]
    if first == second:
        run_in(home, unbroken, 2, *SHARDED, *adapters)
    else:
        home.run(unbroken, *ONE_THREAD, *EXACT, *adapters)
    stop_at(home, "stopped", first, 3, *adapters)
    go_on(home, "stopped", second, *adapters)
    assert losses(home, "stopped") == pytest.approx(losses(home, unbroken), rel=1e-3)
    if first == second:
        assert files(home, "stopped") == files(home, unbroken)


@pytest.mark.parametrize("how", ["prefer", "reward", "distill"])
def test_a_second_model_is_sharded_too(tmp_path: Path, how: str) -> None:
    home = Home(tmp_path, task="text" if how == "distill" else how)
    more = ("-s", "distill.teacher=base") if how == "distill" else ()
    home.run("one", *ONE_THREAD, *EXACT, *more)
    run_in(home, "two", 2, *SHARDED, *more)
    assert losses(home, "two") == pytest.approx(losses(home, "one"), rel=1e-3, abs=1e-5)
