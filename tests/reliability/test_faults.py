"""What a run makes of what it finds: caches that others use or left, damaged checkpoints, other text, --force.

Every run here is a process of its own and every signal a real one.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Home, Trial, digests, english, metrics

STEPS, EVAL_EVERY = 60, 7


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With the control run, unbroken, in `control`, and in `half` the same as it was after 50 steps."""
    home = Home(tmp_path_factory.mktemp("faults"), steps=STEPS)
    home.run("control")
    home.run("half", "-s", "train.keep_checkpoints=5")
    for later in ("checkpoints/step-000060", "checkpoints/step-000055"):
        shutil.rmtree(home.path / "half" / later, ignore_errors=True)
    return home


def test_the_control_run_tells_of_every_step_once_and_keeps_the_newest_two_and_the_best(home: Home) -> None:
    told = metrics(home.path / "control")
    assert [step for kind, step, _ in told if kind == "train"] == list(range(1, STEPS + 1))
    assert [step for kind, step, _ in told if kind == "validation"] == [*range(EVAL_EVERY, STEPS, EVAL_EVERY), STEPS]
    run = home.path / "control"
    names = {path.name for path in (run / "checkpoints").iterdir()}
    best = os.readlink(run / "best").removeprefix("checkpoints/")
    assert names == {"step-000055", "step-000060", best}
    assert os.readlink(run / "latest") == "checkpoints/step-000060"


def test_a_stopped_run_says_the_command_that_goes_on(home: Home) -> None:
    trial = home.start("stopped")
    wait_for(lambda: list((home.path / "stopped").glob("checkpoints/step-*")), trial)
    trial.signal(signal.SIGTERM)
    ended = trial.end()
    assert ended.code == 143, ended
    step = int(home.newest("stopped").name.removeprefix("step-"))
    assert f"saved at step {step}; go on with: gptcli pretrain stopped/run.yaml --resume" in ended.err
    assert Trial(["pretrain", "stopped/run.yaml", "--resume"], home.path, home.env).end().code == 0
    assert home.same_end("stopped")


def wait_for(there: Callable[[], object], trial: Trial) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, trial.err
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------------------ the cache


def test_two_runs_on_the_same_new_text_prepare_it_once_and_neither_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=5)
    (tmp_path / "corpus.txt").write_text(english(3, 6000))
    ended = [trial.end() for trial in [home.start(name) for name in ("one", "two")]]
    assert [each.code for each in ended] == [0, 0], ended
    assert digests(home.newest("one")) == digests(home.newest("two"))
    cache = tmp_path / "cache" / "gptcli"
    assert len(list((cache / "prepared").iterdir())) == 1
    assert [path.name for path in (cache / "work").rglob("*") if path.is_file()] == ["lock"]


def test_a_run_waits_while_another_process_prepares_the_same_text(home: Home) -> None:
    (work,) = (home.path / "cache" / "gptcli" / "work").iterdir()
    code = (
        "import sys, time; from pathlib import Path; from gptcli.base import fsio\n"
        "with fsio.locked(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(work)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    trial = home.start("patient", "-s", "train.steps=2")
    wait_for(lambda: trial.err.endswith("\n"), trial)
    assert f"busy: pid {holder.pid} on " in trial.err
    assert trial.err.endswith("waiting for it\n")
    holder.kill()
    holder.communicate()
    assert trial.end().code == 0


def test_what_killed_runs_left_in_the_cache_is_removed_in_the_end(home: Home) -> None:
    cache = home.path / "cache" / "gptcli"
    key = "0123456789abcdef01234567"
    old = [cache / "work" / "spool-0a_b1c2d", cache / "work" / key, cache / "prepared" / f".trash-{key}-1-1"]
    mine = [cache / "work" / "notes", cache / "work" / "spool-of-thread", cache / "prepared" / ".git"]
    for path in old + mine:
        path.mkdir()
        (path / "content").touch()
        os.utime(path, (1e9, 1e9))
    young = cache / "work" / key[::-1]
    young.mkdir()
    home.run("sweeper", "-s", "train.steps=1")
    assert not [path for path in old if path.exists()]
    assert all((path / "content").exists() for path in mine)
    assert young.exists()
    for path in mine:
        shutil.rmtree(path)
    young.rmdir()


def test_a_cut_shard_in_the_cache_is_made_again(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=2)
    home.run("one")
    (shard,) = (tmp_path / "cache" / "gptcli" / "prepared").glob("*/train-00000.bin")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "damaged; preparing the text again" in home.run("two").err
    assert shard.read_bytes() == whole


# -------------------------------------------------------------------------------------------------------- what is there


def test_resuming_with_other_text_under_the_same_name_says_that_the_content_changed(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=2)
    home.run("run")
    (tmp_path / "corpus.txt").write_text(english(2, 400))
    assert "cannot resume: the text" in home.run("run", "--resume", code=3).err


def test_checkpoints_later_than_the_one_gone_on_from_do_not_push_it_out(home: Home) -> None:
    run = home.copy("control", "pushed")
    old = home.path / "half" / "checkpoints" / "step-000050"
    shutil.copytree(old, run / "checkpoints" / old.name, dirs_exist_ok=True)
    flip_a_bit(run / "checkpoints" / "step-000060" / "model.safetensors", 12345)
    (run / "checkpoints" / "step-000055" / "manifest.json").unlink()
    ended = home.run("pushed", "--resume", "-s", "train.steps=52")  # saves step 52 with two damaged ones after it
    assert "going on from" in ended.err
    assert home.newest("pushed").name == "step-000052"
    assert (run / "latest" / "model.safetensors").is_file()
    assert not os.path.islink(run / "best") or (run / "best").is_dir()


def test_a_run_with_damaged_checkpoints_only_is_not_begun_again_in_silence(home: Home) -> None:
    paths = sorted((home.copy("half", "ruined") / "checkpoints").iterdir())
    for path in paths:
        flip_a_bit(path / "training.json", 77)
    said = home.run("ruined", "--resume", code=3).err
    assert all(path.name in said for path in paths)
    assert "warning" not in said


def test_force_begins_again_and_the_links_name_the_new_checkpoints(home: Home) -> None:
    run = home.copy("half", "again")
    home.run("again", "--force", "-s", "data.train=missing.txt", code=2)
    assert home.newest("again").exists()  # a run that cannot begin deletes nothing
    home.run("again", "--force", "-s", "train.steps=5", "-s", "train.eval_every_steps=100")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000005"]
    assert os.readlink(run / "latest") == "checkpoints/step-000005"
    assert (run / "best").is_dir()
    assert [step for kind, step, _ in metrics(run) if kind == "train"] == [1, 2, 3, 4, 5]
