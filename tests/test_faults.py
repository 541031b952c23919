"""Kills, signals, full disks, damaged files: a run ends with a clear message or with the weights of an unbroken run.

Every run here is a process of its own and every signal a real one.
"""

import hashlib
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
import torch
import yaml
from safetensors.torch import load_file, save_file

STEPS, SAVE_EVERY, EVAL_EVERY = 60, 5, 7
KILLS = 10
WEIGHTS = ("model.safetensors", "training.safetensors")
NOUNS = (
    "river stone garden winter letter captain market window shadow engine forest teacher bridge song harbour".split()
)
VERBS = "finds crosses remembers paints follows hides carries opens leaves watches mends answers".split()


def english(seed: int, sentences: int = 2500) -> str:
    draw = random.Random(seed)
    noun, verb = lambda: draw.choice(NOUNS), lambda: draw.choice(VERBS)
    return "".join(f"The {noun()} {verb()} the {noun()}, and a {noun()} {verb()} it. " for _ in range(sentences))


class Home:
    """A directory with a corpus, a cache and run files."""

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = path
        (path / "corpus.txt").write_text(english(1))
        self.environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(cache or path / "cache"),
            "OMP_NUM_THREADS": "1",
            "CI": "1",
        }
        document = {
            "run_dir": "run",
            "data": {"train": ["corpus.txt"]},
            "tokenizer": {"vocab_size": 300},
            "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 32, "dropout": 0.1},
            "train": {
                "steps": STEPS,
                "batch_size": 4,
                "micro_batch_size": 2,
                "log_every_steps": 1,
                "eval_every_steps": EVAL_EVERY,
                "eval_tokens": 640,
                "save_every_steps": SAVE_EVERY,
                "sample_every_steps": 0,
            },
            "runtime": {"device": "cpu", "threads": 1},
        }
        (path / "run.yaml").write_text(yaml.safe_dump(document))

    def arguments(self, run: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "gptcli", "pretrain", "run.yaml", "-s", f"run_dir={run}", *more]

    def start(self, run: str, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.arguments(run, *more), cwd=self.path, env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def run(self, run: str, *more: str, code: int = 0, limit: str = "") -> str:
        """Runs to the end and returns what was said; `limit` is a shell command that runs before it."""
        arguments = self.arguments(run, *more)
        if limit:
            arguments = ["bash", "-c", f'{limit}; exec "$@"', "bash", *arguments]
        done = subprocess.run(arguments, cwd=self.path, env=self.environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def newest(self, run: str) -> Path:
        return sorted((self.path / run / "checkpoints").glob("step-*"))[-1]

    def step(self, run: str) -> int:
        """The last step that metrics.jsonl tells of."""
        path = self.path / run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def wait_for_step(self, run: str, step: int) -> None:
        deadline = time.monotonic() + 60
        while self.step(run) < step:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def copy(self, run: str, name: str) -> None:
        shutil.copytree(self.path / run, self.path / name, symlinks=True)


def digests(checkpoint: Path) -> list[str]:
    return [hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in WEIGHTS]


def metrics(run: Path) -> list[tuple[str, int, float | None]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["kind"], record["step"], record.get("loss_nats")) for record in records]


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << (position % 8)
    path.write_bytes(content)


def describe_again(checkpoint: Path) -> None:
    """Make the manifest fit what lies in the directory."""
    files = [file for file in sorted(checkpoint.iterdir()) if file.name != "manifest.json"]
    described = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in files
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"files": described}))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """With the control run, unbroken, in `control`, and in `half` the same as it was after 50 steps."""
    home = Home(tmp_path_factory.mktemp("faults"))
    home.run("control")
    home.run("half", "-s", "train.keep_checkpoints=5")
    for later in ("checkpoints/step-000060", "checkpoints/step-000055"):
        shutil.rmtree(home.path / "half" / later, ignore_errors=True)
    return home


def assert_ends_like_control(home: Home, run: str) -> None:
    assert home.newest(run).name == f"step-{STEPS:06d}"
    assert digests(home.newest(run)) == digests(home.newest("control"))
    assert metrics(home.path / run) == metrics(home.path / "control")


def test_the_control_run_tells_of_every_step_once_and_keeps_the_newest_two_and_the_best(home: Home) -> None:
    told = metrics(home.path / "control")
    assert [step for kind, step, _ in told if kind == "train"] == list(range(1, STEPS + 1))
    assert [step for kind, step, _ in told if kind == "validation"] == [*range(EVAL_EVERY, STEPS, EVAL_EVERY), STEPS]
    run = home.path / "control"
    names = {path.name for path in (run / "checkpoints").iterdir()}
    best = os.readlink(run / "best").removeprefix("checkpoints/")
    assert names == {"step-000055", "step-000060", best}
    assert os.readlink(run / "latest") == "checkpoints/step-000060"


def test_a_run_killed_ten_times_at_random_moments_reaches_the_weights_of_the_unbroken_run(tmp_path: Path) -> None:
    home = Home(tmp_path)
    longer = ("-s", "train.steps=150", "-s", "train.batch_size=8")  # long enough to be killed ten times
    started = time.monotonic()
    home.run("control", *longer)
    seconds = time.monotonic() - started
    draw = random.Random(5)
    kills = 0
    for number in range(KILLS):
        process = home.start("broken", "--resume", *longer)
        seen = home.step("broken")
        # Every other kill is given time to get on first; the rest also hit start-up, restoring and the first save.
        while number % 2 and process.poll() is None and home.step("broken") <= seen:
            time.sleep(0.01)
        try:
            process.wait(timeout=draw.uniform(0, 0.06) * seconds + (0 if number % 2 else 2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, said = process.communicate()
        assert "error" not in said, (number, said)
        (tmp_path / "broken" / "checkpoints" / ".tmp-leftover").mkdir(parents=True, exist_ok=True)
    assert kills >= KILLS // 2  # a machine may finish the run before the last kills
    home.run("broken", "--resume", *longer)
    assert digests(home.newest("broken")) == digests(home.newest("control"))
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "control")
    for directory in (tmp_path / "broken", tmp_path / "broken" / "checkpoints"):
        assert not [path.name for path in directory.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_at_a_checkpoint_and_resuming_reaches_the_same_weights(
    home: Home, number: signal.Signals, code: int
) -> None:
    run = number.name
    process = home.start(run)
    home.wait_for_step(run, 12)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code, said
    assert "Traceback" not in said
    step = int(home.newest(run).name.removeprefix("step-"))
    assert 12 <= step < STEPS
    assert home.step(run) == step
    assert f"stopped and saved at step {step}; go on with: gptcli pretrain {run}/run.yaml --resume" in said
    again = [sys.executable, "-m", "gptcli", "pretrain", f"{run}/run.yaml", "--resume"]
    subprocess.run(again, cwd=home.path, env=home.environment, check=True, capture_output=True)
    assert_ends_like_control(home, run)


def test_a_second_writer_is_refused_and_told_the_pid_of_the_first(home: Home) -> None:
    process = home.start("shared", "-s", "train.steps=100000", "-s", "train.patience=100000")
    try:
        home.wait_for_step("shared", 1)
        for more in (("--resume",), ("--force",)):
            said = home.run("shared", *more, code=5)
            assert f"busy: pid {process.pid} on " in said
            assert len(said.splitlines()) == 1
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    said = home.run("shared", code=5)  # nobody holds it now, but it holds a run
    assert "--resume" in said


def test_two_runs_on_the_same_new_text_prepare_it_once_and_neither_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "corpus.txt").write_text(english(3, 6000))
    processes = [home.start(name, "-s", "train.steps=5") for name in ("one", "two")]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert digests(home.newest("one")) == digests(home.newest("two"))
    cache = tmp_path / "cache" / "gptcli"
    assert len(list((cache / "prepared").iterdir())) == 1
    assert [path.name for path in (cache / "work").rglob("*") if path.is_file()] == ["lock"]


def test_a_run_waits_while_another_process_prepares_the_same_text(home: Home) -> None:
    (work,) = (home.path / "cache" / "gptcli" / "work").iterdir()
    code = (
        "import sys, time; from pathlib import Path; from gptcli import fsio\n"
        "with fsio.locked(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(work)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    process = home.start("patient", "-s", "train.steps=2")
    assert process.stderr is not None
    said = process.stderr.readline()
    assert f"busy: pid {holder.pid} on " in said
    assert said.endswith("waiting for it\n")
    holder.kill()
    holder.communicate()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_what_killed_runs_left_in_the_cache_is_removed_in_the_end(home: Home) -> None:
    cache = home.path / "cache" / "gptcli"
    old = [cache / "work" / "spool-dead", cache / "work" / "0123", cache / "prepared" / ".trash-1-1"]
    for path in old:
        path.mkdir()
        (path / "content").touch()
        os.utime(path, (1e9, 1e9))
    young = cache / "work" / "4567"
    young.mkdir()
    home.run("sweeper", "-s", "train.steps=1")
    assert not [path for path in old if path.exists()]
    assert young.exists()
    young.rmdir()


def test_a_cut_shard_in_the_cache_is_made_again(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.run("one", "-s", "train.steps=2")
    (shard,) = (tmp_path / "cache" / "gptcli" / "prepared").glob("*/train-00000.bin")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "damaged; preparing the text again" in home.run("two", "-s", "train.steps=2")
    assert shard.read_bytes() == whole


def test_a_checkpoint_with_a_weight_that_is_not_finite_is_passed_over_with_a_warning(home: Home) -> None:
    home.copy("half", "poisoned")
    newest = home.newest("poisoned")
    weights = load_file(newest / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = torch.nan
    save_file(weights, newest / "model.safetensors")
    describe_again(newest)
    said = home.run("poisoned", "--resume")
    (warning,) = [line for line in said.splitlines() if "warning" in line]
    assert f"{name} holds values that are not finite" in warning
    assert "going on from" in warning
    assert_ends_like_control(home, "poisoned")


CHANGES = {
    "model.hidden_size": "64",
    "optim.name": "adamw",
    "data.train": "other.txt",
}


@pytest.mark.parametrize("key", CHANGES)
def test_resuming_with_another_setting_names_the_key(home: Home, key: str) -> None:
    shutil.copy(home.path / "corpus.txt", home.path / "other.txt")
    before = digests(home.newest("half"))
    said = home.run("half", "--resume", "-s", f"{key}={CHANGES[key]}", code=3)
    assert f"cannot resume, {key} differ" in said
    assert digests(home.newest("half")) == before
    assert "hidden_size: 32" in (home.path / "half" / "run.yaml").read_text()


def test_resuming_with_other_text_under_the_same_name_says_that_the_content_changed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.run("run", "-s", "train.steps=2")
    (tmp_path / "corpus.txt").write_text(english(2))
    said = home.run("run", "--resume", code=3)
    assert "content.inputs" in said


def damage(checkpoint: Path, how: str) -> None:
    path = checkpoint / "model.safetensors"
    if how == "a flipped bit":
        flip_a_bit(path, 12345)
    elif how == "a flipped bit in the state":
        flip_a_bit(checkpoint / "training.json", 77)
    elif how == "a cut file":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "a missing file":
        (checkpoint / "training.safetensors").unlink()
    else:
        (checkpoint / "manifest.json").unlink()


@pytest.mark.parametrize("how", ["a flipped bit", "a cut file", "a missing file"])
def test_a_damaged_checkpoint_is_passed_over_with_one_warning_and_the_weights_come_out_the_same(
    home: Home, how: str
) -> None:
    run = how.replace(" ", "-")
    home.copy("half", run)
    newest = home.newest(run)
    damage(newest, how)
    said = home.run(run, "--resume")
    warnings = [line for line in said.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    assert "going on from" in warnings[0]
    assert_ends_like_control(home, run)


def test_checkpoints_later_than_the_one_gone_on_from_do_not_push_it_out(home: Home) -> None:
    run = home.path / "pushed"
    home.copy("control", "pushed")
    old = home.path / "half" / "checkpoints" / "step-000050"
    shutil.copytree(old, run / "checkpoints" / old.name, dirs_exist_ok=True)
    for name, how in (("step-000060", "a flipped bit"), ("step-000055", "no manifest")):
        damage(run / "checkpoints" / name, how)
    said = home.run("pushed", "--resume", "-s", "train.steps=52")  # saves step 52 with two damaged ones after it
    assert "going on from" in said
    assert home.newest("pushed").name == "step-000052"
    assert (run / "latest" / "model.safetensors").is_file()
    assert not os.path.islink(run / "best") or (run / "best").is_dir()


def test_a_run_with_damaged_checkpoints_only_is_not_begun_again_in_silence(home: Home) -> None:
    home.copy("half", "ruined")
    paths = sorted((home.path / "ruined" / "checkpoints").iterdir())
    for path in paths:
        damage(path, "a flipped bit in the state")
    said = home.run("ruined", "--resume", code=3)
    assert all(path.name in said for path in paths)
    assert "warning" not in said


def test_force_begins_again_and_the_links_name_the_new_checkpoints(home: Home) -> None:
    home.copy("half", "again")
    home.run("again", "--force", "-s", "data.train=missing.txt", code=2)
    assert home.newest("again").exists()  # a run that cannot begin deletes nothing
    home.run("again", "--force", "-s", "train.steps=5", "-s", "train.eval_every_steps=100")
    run = home.path / "again"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000005"]
    assert os.readlink(run / "latest") == "checkpoints/step-000005"
    assert (run / "best").is_dir()
    assert [step for kind, step, _ in metrics(run) if kind == "train"] == [1, 2, 3, 4, 5]


def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(home: Home) -> None:
    home.copy("half", "full")
    newest = home.newest("full")
    before = digests(newest)
    said = home.run("full", "--resume", "--quiet", code=1, limit="ulimit -f 40")  # 40 KiB, less than the weights
    assert len(said.splitlines()) == 1
    assert "File too large" in said
    assert home.newest("full") == newest
    assert digests(newest) == before
    home.run("full", "--resume")
    assert_ends_like_control(home, "full")
