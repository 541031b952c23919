"""What the proofs of reliability share: trials in forked processes, and faults at the n-th file operation.

A server imports torch once and forks a process for every trial, which then costs what its work costs. A trial runs
`gptcli.cli.main` as the real command does: its own process, files for stdout and stderr, real signals.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import pickle
import pty
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

SECONDS = 120  # no trial takes so long
# Python 3.11's server looks for what it is to import in PYTHONPATH only.
PLACES = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, PLACES))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["faults_preload"])


# --------------------------------------------------------------------------------------------------------------- faults


Perform: TypeAlias = Callable[[str, tuple[Any, ...], Callable[[], Any]], Any]  # of fsio.operations


@dataclass(frozen=True)
class Lacks:
    """Stands in `fsio.operations.perform`: a file system that has no operations of some names."""

    names: tuple[str, ...]
    error: str  # the name of the errno with which it refuses them

    def __call__(self, name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:  # noqa: ARG002
        if name in self.names:
            code = getattr(errno, self.error)
            raise OSError(code, os.strerror(code))
        return act()


@dataclass
class Fault:
    """Stands in `fsio.operations.perform`. Operations are counted from 1 in the order in which they begin."""

    at: int = 0  # the operation to end before, after or in the middle of, or to let fail; 0: none
    how: str = "before"  # before, after, middle (of a write), or the name of an errno
    only: str = ""  # count operations of this name only
    lacks: Lacks | None = None  # what the file system does not have besides
    log: str = ""  # a file to which every operation is appended, pickled
    count: int = 0

    def __call__(self, name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:
        if self.lacks is not None and name in self.lacks.names:
            return self.lacks(name, arguments, act)
        if self.only and name != self.only:
            return act()
        self.count += 1
        here = self.count == self.at
        if here and self.how.startswith("E"):
            code = getattr(errno, self.how)
            raise OSError(code, os.strerror(code))
        if here and self.how in ("before", "middle"):
            if self.how == "middle" and name == "write":
                path, block = arguments
                with open(path, "ab", buffering=0) as file:
                    file.write(block[: len(block) // 2])
            os._exit(137)
        try:
            result = act()
        except OSError:  # such as to remove what is not there
            name, arguments, result = "nothing", (), None
            raise
        finally:
            if self.log:
                self._record(name, arguments, result)
            if here:
                os._exit(137)
        return result

    def _record(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name in ("create", "mkdir") and isinstance(result, tuple):  # at a name that was not known before
            arguments = (result[1],)
        if name == "write":
            arguments = (arguments[0], bytes(arguments[1][:result]))
        with open(self.log, "ab") as file:
            pickle.dump((name, tuple(map(_absolute, arguments))), file)


def _absolute(argument: Any) -> Any:
    return Path(os.path.abspath(argument)) if isinstance(argument, Path) else argument


def read_log(path: Path) -> list[tuple[str, tuple[Any, ...]]]:
    """The operations that a Fault recorded."""
    found = []
    with path.open("rb") as file, suppress(EOFError):
        while True:
            found.append(pickle.load(file))
    return found


# --------------------------------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    code: int  # of the exit, or minus the signal
    out: bytes
    err: str
    seconds: float


@dataclass
class Trial:
    """A gptcli command under way in a forked process."""

    arguments: list[str]
    cwd: Path
    env: dict[str, str | None] = field(default_factory=dict)  # None: taken out of the environment
    fault: Perform | None = None
    input: bytes = b""
    stdout: str = "file"  # or closed, broken (its reader has gone), head (its reader takes one byte), full, terminal

    def __post_init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="trial-"))
        (self.directory / "in").write_bytes(self.input)
        self.started = time.monotonic()
        arguments = (self.arguments, str(self.cwd), self.env, self.fault, str(self.directory), self.stdout)
        self.process = CONTEXT.Process(target=_child, args=arguments)
        self.process.start()

    @property
    def err(self) -> str:
        with suppress(FileNotFoundError):
            return (self.directory / "e").read_text(errors="replace")
        return ""

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self, seconds: float = SECONDS) -> Ended:
        """Wait for the end; a trial that does not come to one is killed, and fails."""
        self.process.join(seconds)
        hung = self.process.exitcode is None
        if hung:
            self.process.kill()
            self.process.join()
        took = time.monotonic() - self.started
        if self.stdout == "terminal":
            self._wait_for_terminal()
        out, err = ((self.directory / name).read_bytes() if (self.directory / name).exists() else b"" for name in "oe")
        shutil.rmtree(self.directory)
        assert not hung, f"{self.arguments} did not end in {seconds} s: {err.decode(errors='replace')}"
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, out, err.decode(errors="replace"), took)

    def _wait_for_terminal(self) -> None:
        """Until what copies the terminal's content has read its end."""
        reader = int((self.directory / "reader").read_text())
        deadline = time.monotonic() + 10
        while Path(f"/proc/{reader}").exists() and time.monotonic() < deadline:
            if "Z" in Path(f"/proc/{reader}/stat").read_text().rsplit(")", 1)[1][:3]:
                return
            time.sleep(0.01)


def _child(
    arguments: list[str],
    cwd: str,
    env: dict[str, str | None],
    fault: Perform | None,
    directory: str,
    stdout: str,
) -> None:
    from gptcli.base.fsio import operations
    from gptcli.cli import main

    os.chdir(cwd)
    for name, value in env.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    for number, (name, flags) in enumerate(
        (("in", os.O_RDONLY), ("o", os.O_WRONLY | os.O_CREAT), ("e", os.O_WRONLY | os.O_CREAT))
    ):
        os.dup2(os.open(os.path.join(directory, name), flags, 0o600), number)
    _direct(stdout, directory)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False) if stdout != "closed" else None  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if fault is not None:
        operations.perform = fault
    if mark := env.get("MARK"):
        _signal_at(*mark.split(":"))
    sys.argv = ["gptcli", *arguments]
    main.main()


def _direct(stdout: str, directory: str) -> None:
    """Put something else than a file behind descriptor 1, and a terminal behind 2, too."""
    if stdout == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif stdout == "closed":
        os.close(1)
    elif stdout in ("broken", "head"):
        reading, writing = os.pipe()
        if stdout == "head":
            subprocess.Popen(["head", "-c", "1"], stdin=reading, stdout=subprocess.DEVNULL)
        os.close(reading)
        os.dup2(writing, 1)
        os.close(writing)
    elif stdout == "terminal":
        leader, follower = pty.openpty()
        reader = subprocess.Popen(["cat"], stdin=leader, stderr=subprocess.DEVNULL)
        Path(directory, "reader").write_text(str(reader.pid))
        os.close(leader)
        os.dup2(follower, 1)
        os.dup2(follower, 2)
        os.close(follower)


def _signal_at(module: str, function: str, call: str, number: str, times: str) -> None:
    """This process is signalled as a function is called for the n-th time; `sent` gets the time."""
    owner = importlib.import_module(module)
    inner, calls = getattr(owner, function), itertools.count(1)

    def signalled(*arguments: Any, **named: Any) -> Any:
        if next(calls) == int(call):
            Path("sent").write_text(str(time.time()))
            for _ in range(int(times)):
                os.kill(os.getpid(), int(number))
        return inner(*arguments, **named)

    setattr(owner, function, signalled)


# ----------------------------------------------------------------------------------------------------------------- runs

NOUNS = "river stone garden winter letter captain market window shadow engine forest teacher bridge song".split()
VERBS = "finds crosses remembers paints follows hides carries opens leaves watches mends answers".split()
WEIGHTS = ("model.safetensors", "training.safetensors")


def english(seed: int, sentences: int) -> str:
    draw = random.Random(seed)
    noun, verb = lambda: draw.choice(NOUNS), lambda: draw.choice(VERBS)
    return "".join(f"The {noun()} {verb()} the {noun()}, and a {noun()} {verb()} it. " for _ in range(sentences))


class Home:
    """A directory with a corpus, a cache and the run file of the proofs, on the path of two threads that users get:
    accumulation, several epochs, dropout unless it is 0. `task` is pretrain, or what a base is fine-tuned for."""

    def __init__(
        self,
        path: Path,
        *,
        steps: int = 20,
        save_every: int = 5,
        dropout: float = 0.1,
        task: str = "pretrain",
        **train: Any,
    ) -> None:
        self.path, self.steps, self.task = path, steps, task
        path.mkdir(parents=True, exist_ok=True)
        (path / "corpus.txt").write_text(english(1, 400))
        self.env = {"XDG_CACHE_HOME": str(path / "cache"), "CI": "1", "TERM": "dumb"}
        document = {
            "run_dir": "run",
            "data": {"train": ["corpus.txt"]},
            "tokenizer": {"vocab_size": 300},
            "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 32, "dropout": dropout},
            "train": {
                "steps": steps,
                "batch_size": 4,
                "micro_batch_size": 2,
                "log_every_steps": 1,
                "eval_every_steps": 7,
                "eval_tokens": 320,
                "save_every_steps": save_every,
                "sample_every_steps": 0,
                **(train if task == "pretrain" else {}),
            },
            "runtime": {"device": "cpu", "threads": 2},
        }
        if task != "pretrain":
            (path / "base.yaml").write_text(yaml.safe_dump({**document, "run_dir": "base"}))
            assert Trial(["pretrain", "base.yaml", "-s", "train.steps=2"], path, self.env).end().code == 0
            document = self._tuning(dropout, train)
        (path / "run.yaml").write_text(yaml.safe_dump(document))

    def _tuning(self, dropout: float, train: dict[str, Any]) -> dict[str, Any]:
        """Two epochs of ten steps, with four micro-batches each; of rewards one, whose answers are used twice."""
        rows: list[dict[str, Any]] = []
        for number in range(89):
            text = english(number, 1).strip()
            turns = [{"role": "user", "content": text[:30]}, {"role": "assistant", "content": text[30:60]}]
            answers = {"chosen": text[30:50], "rejected": text[40:60]}
            rows.append({"text": text, "label": "ab"[number % 2], "messages": turns, "prompt": text[:30], **answers})
        (self.path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.steps = 20
        rewards = {"group_size": 3, "max_tokens": 4, "regex": "[aeiou]", "updates": 2, "kl_weight": 0.1}
        return {
            "run_dir": "run",
            "base": "base",
            "task": self.task,
            "data": {"train": ["rows.jsonl"]},
            **({"reward": rewards} if self.task == "reward" else {}),
            "train": {
                "epochs": 1 if self.task == "reward" else 2,
                "batch_size": 8,
                "micro_batch_tokens": 64,
                "dropout": dropout,
                "log_every_steps": 1,
                "evals_per_epoch": 4,
                **train,
            },
            "runtime": {"device": "cpu", "threads": 2},
        }

    def start(self, run: str, *more: str, fault: Perform | None = None) -> Trial:
        command = "pretrain" if self.task == "pretrain" else "finetune"
        return Trial([command, "run.yaml", "-s", f"run_dir={run}", *more], self.path, self.env, fault)

    def run(self, run: str, *more: str, code: int = 0, fault: Perform | None = None) -> Ended:
        """Runs to the end, which must be of that code, with a line for every error and no traceback."""
        ended = self.start(run, *more, fault=fault).end()
        assert ended.code == code, (ended, more)
        assert "Traceback" not in ended.err
        return ended

    def newest(self, run: str) -> Path:
        return sorted((self.path / run / "checkpoints").glob("step-*"))[-1]

    def copy(self, run: str, name: str) -> Path:
        return Path(shutil.copytree(self.path / run, self.path / name, symlinks=True))

    def same_end(self, run: str, control: str = "control") -> bool:
        """Whether a run ended with the weights, optimizer state and metrics of another."""
        return (
            self.newest(run).name == self.newest(control).name
            and digests(self.newest(run)) == digests(self.newest(control))
            and metrics(self.path / run) == metrics(self.path / control)
        )


def digests(checkpoint: Path) -> list[str]:
    return [hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in WEIGHTS]


def metrics(run: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """What a metrics.jsonl says: kind, step, and the rest but for times and memory."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    apart = ("kind", "step", "step_seconds", "tokens_per_second", "mfu", "memory_bytes")
    return [
        (record["kind"], record["step"], {name: value for name, value in record.items() if name not in apart})
        for record in records
    ]


def leftovers(directory: Path) -> list[str]:
    """Names of temporary and half-deleted files below a directory."""
    return [
        str(path) for path in directory.rglob("*") if path.name.startswith((".tmp-", ".trash-", ".partial-", ".old-"))
    ]
