"""Several processes train one run: to the bits of one process, through kills, signals, full disks and hangs.

The full counts, minutes long:  pytest -m slow tests/reliability/test_processes.py
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import Fault, Home, leftovers, metrics
from ranks import ONE_THREAD, Ranks, run_in

from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints

PAUSED = "-s", "train.steps=2000", "-s", "train.save_every_steps=2000", "-s", "train.eval_every_steps=2000"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With the run of one process in `control`."""
    home = Home(tmp_path_factory.mktemp("processes"), micro_batch_size=1)
    home.run("control", *ONE_THREAD)
    return home


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_reach_the_bits_of_one(home: Home, count: int) -> None:
    run_in(home, f"of-{count}", count)
    assert home.same_end(f"of-{count}")


@pytest.mark.parametrize("task", ["classify", "chat", "text", "instruct-lora", "prefer", "reward"])
def test_fine_tuning_in_two_processes_reaches_the_bits_of_one(tmp_path: Path, task: str) -> None:
    name, _, lora = task.partition("-")
    home = Home(tmp_path, task="chat" if name == "instruct" else name)
    more = ("-s", "lora.rank=4") if lora else ()
    if name == "reward":  # other processes write other answers at once, which is exact in float32
        more = ("-s", "runtime.dtype=float32")
    ended = home.run("control", *ONE_THREAD, *more)
    assert ended.code == 0, ended
    ranks = Ranks(home, "two", 2, *more).end()
    assert [each.code for each in ranks] == [0, 0], ranks
    assert adapters_and_metrics(home, "two") == adapters_and_metrics(home, "control") if lora else home.same_end("two")


@pytest.mark.parametrize("shard", ["false", "true"])
def test_a_reward_that_never_says_the_same_twice_is_asked_once_of_an_answer(tmp_path: Path, shard: str) -> None:
    home = Home(tmp_path, task="reward")
    (tmp_path / "score.py").write_text(
        "import os, random\n"
        "def score(answer, row):\n"
        "    with open('asked', 'a') as file:\n"
        "        file.write('.')\n"
        "    return random.Random(os.urandom(8)).random() if random.Random(os.urandom(8)).random() < 0.4 else 0.0\n"
    )
    more = (
        "--allow-code",
        "-s",
        "reward.function=score.py:score",
        "-s",
        "reward.regex=null",
        "-s",
        "reward.group_size=2",
    )
    assert home.run("one", *ONE_THREAD, *more).code == 0
    asked = len((tmp_path / "asked").read_text())
    ended = Ranks(home, "two", 2, *more, "-s", f"parallel.shard={shard}").end()
    assert [each.code for each in ended] == [0, 0], ended
    assert len((tmp_path / "asked").read_text()) == 2 * asked


def test_text_to_go_on_with_may_come_from_a_pipe(tmp_path: Path) -> None:
    home = Home(tmp_path, task="text")
    text = "".join(json.loads(line)["text"] + "\n" for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    command = [sys.executable, "-m", "gptcli", "finetune", "run.yaml", *ONE_THREAD, "-s", 'data.train=["-"]']
    environment = {**os.environ, **home.env}
    for run, more in (("one", ()), ("two", ("--nproc", "2"))):
        subprocess.run(
            [*command, "-s", f"run_dir={run}", *more], input=text.encode(), cwd=tmp_path, env=environment, check=True
        )
    assert (home.newest("one") / "model.safetensors").read_bytes() == (
        home.newest("two") / "model.safetensors"
    ).read_bytes()


def adapters_and_metrics(home: Home, run: str) -> list[object]:
    names = ("adapter_model.safetensors", "training.safetensors")
    return [*((home.newest(run) / name).read_bytes() for name in names), metrics(home.path / run)]


@pytest.mark.parametrize("name", ["classic", "modern"])
def test_exchanging_once_a_step_gives_the_same_losses_to_rounding(home: Home, name: str) -> None:
    more = ("-s", f"optim.preset={name}", "-s", "model.dropout=0", "-s", "runtime.dtype=float32")
    home.run(f"{name}-one", *ONE_THREAD, *more)
    run_in(home, f"{name}-step", 2, *more, "-s", "parallel.exchange=step")
    losses = [
        [facts["loss_nats"] for kind, _, facts in metrics(home.path / run) if kind in ("train", "validation")]
        for run in (f"{name}-one", f"{name}-step")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def go_on(home: Home, run: str, count: int) -> None:
    if count == 1:
        home.run(run, *ONE_THREAD, "--resume")
    else:
        run_in(home, run, count, "--resume")


def stop_at(home: Home, run: str, count: int, step: int) -> None:
    """Run until a step or a few more are done."""
    ranks = Ranks(home, run, count, *(["--resume"] if (home.path / run).exists() else []))
    ranks.wait_for_step(step)
    ranks.signal(signal.SIGTERM)
    ended = ranks.end()
    assert [each.code for each in ended] in ([143] + [0] * (count - 1), [0] * count), ended


def test_a_run_goes_on_with_another_number_of_processes(home: Home) -> None:
    stop_at(home, "mixed", 2, 4)
    stop_at(home, "mixed", 3, 9)
    go_on(home, "mixed", 1)
    assert home.same_end("mixed")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), list(itertools.product((1, 2, 4), repeat=2)))
def test_any_number_goes_on_with_what_any_other_wrote(home: Home, first: int, second: int) -> None:
    run = f"from-{first}-to-{second}"
    stop_at(home, run, first, 8)
    go_on(home, run, second)
    assert home.same_end(run)


# ------------------------------------------------------------------------------------------------------------- faults


def killed_and_resumed(home: Home, run: str, draw: random.Random) -> None:
    """Kill one of 2 or 4 processes at a random moment; another number goes on to the bits of an undisturbed run."""
    count = draw.choice((2, 4))
    ranks = Ranks(home, run, count)
    ranks.wait_for_step(draw.randrange(1, home.steps))
    time.sleep(draw.random() * 0.05)
    victim = draw.randrange(count)
    ranks.signal(signal.SIGKILL, victim)
    ended = ranks.end()
    assert ended[victim].code in (-signal.SIGKILL, 0), ended
    if ended[victim].code:
        assert all(each.code in (1, 75) for rank, each in enumerate(ended) if rank != victim), ended
        assert len(ranks.errors(ended)) <= 1, ended
    for path in checkpoints(home.path / run):
        checkpoint.verify(path)
    again = draw.choice([number for number in (1, 2, 4) if number != count])
    go_on(home, run, again)
    assert home.same_end(run)
    assert leftovers(home.path / run) == []
    shutil.rmtree(home.path / run)


def test_a_killed_process_ends_the_others_and_the_run_goes_on(home: Home) -> None:
    for seed in range(2):
        killed_and_resumed(home, f"killed-{seed}", random.Random(seed))


@pytest.mark.slow
def test_a_hundred_kills(home: Home) -> None:
    for seed in range(100):
        killed_and_resumed(home, f"killed-{seed}", random.Random(100 + seed))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_saves_and_ends_all(home: Home, rank: int) -> None:
    ranks = Ranks(home, f"stopped-{rank}", 2, *PAUSED)
    ranks.wait_for_step(3)
    ranks.signal(signal.SIGTERM, rank)
    ended = ranks.end()
    assert [each.code for each in ended] == [143, 0], ended
    assert "stopped and saved at step" in ended[0].err
    assert ranks.errors(ended) == []
    assert len(checkpoints(ranks.run)) == 1


def test_a_full_disk_ends_all_with_one_line(home: Home) -> None:
    ranks = Ranks(home, "full", 2, fault=Fault(at=8, how="ENOSPC", only="write"))
    ended = ranks.end()
    assert [each.code for each in ended] == [1, 75], ended
    (line,) = ranks.errors(ended)
    assert "No space left on device" in line


@pytest.mark.parametrize("rank", [0, 1])  # the first has the store in which they say whose error it is
def test_a_process_that_hangs_ends_the_others_in_time(home: Home, rank: int) -> None:
    ranks = Ranks(home, f"hung-{rank}", 2, *PAUSED, "-s", "parallel.timeout_seconds=2")
    ranks.wait_for_step(3)
    ranks.signal(signal.SIGSTOP, rank)
    other = ranks.trials[1 - rank].end(30)
    ranks.signal(signal.SIGKILL, rank)
    ranks.trials[rank].end()
    assert other.code == 1
    assert "a process was silent for 2 s (parallel.timeout_seconds)" in other.err


# ----------------------------------------------------------------------------------------------------------- launchers


@pytest.mark.slow
def test_of_a_process_that_hangs_one_line_is_told(home: Home) -> None:
    process = start(home, "hung", "gptcli", more=("--nproc", "2", "-s", "parallel.timeout_seconds=2", *PAUSED))
    wait_for_metrics(home.path / "hung")
    workers = children(process.pid)
    os.kill(workers[0], signal.SIGSTOP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = [line for line in err.splitlines() if "error" in line]
    assert "a process was silent for 2 s" in line
    assert gone(workers)


def start(home: Home, run: str, *command: str, more: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *command, "pretrain", "run.yaml", "-s", f"run_dir={run}", *ONE_THREAD, *more],
        cwd=home.path, env={**os.environ, **home.env, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def wait_for_metrics(run: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(pids: list[int], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_nproc_starts_them_and_ends_as_one_would(home: Home) -> None:
    process = start(home, "launched", "gptcli", more=("--nproc", "2", "--json"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("\n") == 1, out
    assert "1 thread in each of 2 processes" in err
    assert home.same_end("launched")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_saves_and_ends_all(home: Home, number: int) -> None:
    process = start(home, f"launcher-{number}", "gptcli", more=("--nproc", "2", *PAUSED))
    wait_for_metrics(home.path / f"launcher-{number}")
    workers = children(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert err.count("stopped and saved") == 1, err
    assert "error" not in err
    assert gone(workers)


@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_nothing_is_left_behind_by_kill_9(home: Home, victim: str) -> None:
    run = f"kill-{victim}"
    process = start(home, run, "gptcli", more=("--nproc", "2", *PAUSED))
    wait_for_metrics(home.path / run)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(process.pid if victim == "launcher" else workers[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert gone(workers)
    errors = [line for line in err.splitlines() if "error" in line]
    if victim == "worker":
        assert process.returncode == 1
        assert len(errors) == 1, err
        assert "process 1 of 2 was ended by SIGKILL" in errors[0]
    else:
        assert errors == [], err
        assert len(checkpoints(home.path / run)) == 1  # they end as by SIGTERM, and save
