"""File systems without links, locks, modes, the fsync of a directory, the swap of names or memory maps, as cloud
drives, SMB, FAT, FUSE and network mounts are: a run lives there, and what it does without is told once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Ended, Home, Lacks, Trial, leftovers

from gptcli.base import fsio
from gptcli.base.fsio import operations
from gptcli.observe.history import read_run
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints

LINKS = [Lacks(("link",), error) for error in ("EOPNOTSUPP", "EPERM", "ENOSYS")]
LOCKS = [Lacks(("lock",), error) for error in ("ENOSYS", "ENOLCK", "EOPNOTSUPP")]
SYNCS = [Lacks(("sync directory",), "EINVAL"), Lacks(("sync", "sync directory"), "ENOSYS")]
ALL = Lacks(("link", "lock", "sync", "sync directory", "exchange"), "EOPNOTSUPP")
TOLD = {"lock": "has no locks", "sync directory": "has no fsync of directories", "sync": "has no fsync"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("file-systems"), steps=7, save_every=2)
    home.run("control")
    return home


def use(home: Home, *arguments: str, lacks: Lacks | None = None, input: bytes = b"") -> Ended:
    ended = Trial([*arguments], home.path, home.env, lacks, input).end()
    assert ended.code == 0, ended
    return ended


@pytest.mark.parametrize("lacks", [*LINKS, *LOCKS, *SYNCS, ALL], ids=lambda lacks: f"{lacks.error}-{lacks.names[0]}")
def test_a_run_lives_on_a_file_system_that_lacks_something(home: Home, lacks: Lacks) -> None:
    shutil.rmtree(home.path / "run", ignore_errors=True)
    ended = home.run("run", "-s", "train.steps=4", "-s", "optim.warmup_steps=1", fault=lacks)
    warnings = [line for line in ended.err.splitlines() if "warning" in line]
    wanted = {text for name, text in TOLD.items() if name in lacks.names}
    assert all(sum(text in line for line in warnings) >= 1 for text in wanted), ended.err
    assert len(warnings) == len(wanted), ended.err
    home.run("run", "--resume", "-s", "optim.warmup_steps=1", fault=lacks)
    assert checkpoints(home.path / "run")[0].name == "step-000007"
    checkpoint.verify(checkpoints(home.path / "run")[0])
    assert leftovers(home.path / "run") == []
    assert read_run(home.path / "run").state == "finished"
    there = {f"checkpoints/{path.name}" for path in checkpoints(home.path / "run")}
    for name in ("latest", "best"):
        pointer = home.path / "run" / name
        assert pointer.is_symlink() == ("link" not in lacks.names)
        assert fsio.pointed(pointer) in there


def test_every_reader_follows_a_small_file_as_it_follows_a_link(home: Home) -> None:
    shutil.rmtree(home.path / "run", ignore_errors=True)
    home.run("run", fault=LINKS[0])
    assert not (home.path / "run" / "latest").is_symlink()
    for name in ("latest", "best"):
        there, linked = f"run/{name}", f"control/{name}"
        for command in ("generate", "score"):
            text = ["The", "--max-tokens", "5", "--temperature", "0"] if command == "generate" else []
            texts = [use(home, command, run, *text, input=b"The river.\n").out for run in (there, linked)]
            assert texts[0] == texts[1] != b""
        assert use(home, "count", there, "corpus.txt").out == use(home, "count", linked, "corpus.txt").out
        assert use(home, "checkpoint", "list", there).out.startswith(b"step-")
    listed = use(home, "checkpoint", "list", "run").out.decode()
    assert listed == use(home, "checkpoint", "list", "control").out.decode()
    assert "latest" in listed
    assert "best" in listed
    assert use(home, "generate", "run", "The", "--max-tokens", "5").out
    use(home, "export", "run/best", "-o", "out", "--to", "hf")


def test_a_run_moves_between_file_systems_with_links_and_without(home: Home) -> None:
    shutil.rmtree(home.path / "run", ignore_errors=True)
    home.run("run", "-s", "train.steps=3", "-s", "optim.warmup_steps=1", fault=LINKS[1])
    home.run("run", "--resume", "-s", "optim.warmup_steps=1")
    assert os.readlink(home.path / "run" / "latest") == "checkpoints/step-000007"
    home.run("run", "--resume", "-s", "train.steps=9", "-s", "optim.warmup_steps=1", fault=LINKS[1])
    assert (home.path / "run" / "latest").read_text() == "checkpoints/step-000009\n"
    home.run("run", "--force", fault=LINKS[1])
    assert (home.path / "run" / "latest").read_text() == "checkpoints/step-000007\n"


def test_a_small_file_that_names_nothing_is_itself(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for content in (b"", b"nothing\n", b"/there\n", b"a\0b", b"there\nthere\n", b"there" * 2000, b"\xff\xfe"):
        (tmp_path / "latest").write_bytes(content)
        assert fsio.follow(tmp_path / "latest") == tmp_path / "latest", content
    (tmp_path / "latest").write_bytes(b"there\n")
    assert fsio.follow(tmp_path / "latest") == tmp_path / "there"


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(operations, "perform", LOCKS[0])
    yield
    operations.take_warnings()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_live_writer_is_told_from_a_dead_one_and_nothing_of_it_is_swept(tmp_path: Path) -> None:
    with fsio.new_directory(tmp_path / "out") as first:
        (first / "file").write_text("first")
        with fsio.new_directory(tmp_path / "out") as second:
            (second / "file").write_text("second")
        assert (first / "file").read_text() == "first"
    assert (tmp_path / "out" / "file").read_text() == "first"
    with fsio.locked(tmp_path / "run"):
        assert fsio.is_held(tmp_path / "run")
    assert not fsio.is_held(tmp_path / "run")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for text in (
        f"pid {dead.stdout.strip()} on {os.uname().nodename} since now\n",
        "pid 1 on elsewhere since now\n",
        "?",
    ):
        (tmp_path / "run" / fsio.LOCK).write_text(text)
        assert not fsio.is_held(tmp_path / "run")


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/types.h>
static int refused(int protection, int flags, int file) {
    return file >= 0 && (flags & MAP_SHARED) && !(protection & PROT_EXEC);
}
void *mmap64(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap64");
    if (refused(protection, flags, file)) { errno = ENODEV; return MAP_FAILED; }
    return real(at, size, protection, flags, file, offset);
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    return mmap64(at, size, protection, flags, file, offset);
}
int chmod(const char *path, mode_t mode) { errno = EPERM; return -1; }
int fchmod(int file, mode_t mode) { errno = EPERM; return -1; }
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="no C compiler")
def test_a_run_lives_without_memory_maps_and_modes(home: Home, tmp_path: Path) -> None:
    (tmp_path / "shim.c").write_text(SHIM)
    shim = tmp_path / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, tmp_path / "shim.c", "-ldl"], check=True)
    environment = {**os.environ, **home.env, "LD_PRELOAD": str(shim)}
    for arguments in (
        ["pretrain", "run.yaml", "-s", "run_dir=shim", "-q"],
        ["generate", "shim", "The", "--max-tokens", "3"],
        ["checkpoint", "verify", "shim"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "gptcli", *arguments], cwd=home.path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr if "verify" not in arguments else "") == (0, ""), done
    assert home.same_end("shim")
