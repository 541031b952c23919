"""Locks that die with their holder, and outputs that are refused before any work."""

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest
from holders import HOLD, names, start

from gptcli.base import fsio
from gptcli.base.errors import RefusedError


def test_a_lock_names_its_holder_and_is_free_once_the_holder_is_killed(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    with pytest.raises(RefusedError, match=f"busy: pid {process.pid} on "), fsio.locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with fsio.locked(tmp_path):
        assert f"pid {os.getpid()} " in (tmp_path / "lock").read_text()
        with pytest.raises(RefusedError, match=str(os.getpid())), fsio.locked(tmp_path):
            pass
    with fsio.locked(tmp_path):
        pass


def test_a_holder_who_has_only_begun_is_given_the_time_to_tell_its_name(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.2, lambda: print("pid 7 on here since now", file=file, flush=True)).start()
        with pytest.raises(RefusedError, match="busy: pid 7 on here since now"), fsio.locked(tmp_path):
            pass


def test_looking_at_what_a_dead_writer_left_never_makes_the_next_one_fail(tmp_path: Path) -> None:
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            fsio.is_held(tmp_path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    (tmp_path / "lock").write_text("pid 99999 on here since now\n")
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            with fsio.locked(tmp_path):
                assert fsio.is_held(tmp_path)
            (tmp_path / "lock").write_text("pid 99999 on here since now\n")
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_one_who_waits_for_a_lock_is_told_of_the_holder_and_gets_it_in_the_end(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path)
    told: list[str] = []
    started = time.monotonic()
    killer = threading.Timer(1.5, process.kill)
    killer.start()
    with fsio.locked(tmp_path, wait=told.append):
        assert time.monotonic() - started > 1.4
    process.communicate()
    assert len(told) == 1
    assert f"pid {process.pid} " in told[0]


def test_one_who_waited_for_a_directory_that_went_away_holds_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    waiting = threading.Event()
    held = threading.Event()

    def wait() -> None:
        with fsio.locked(path, wait=lambda _: waiting.set()):
            with pytest.raises(RefusedError), fsio.locked(path):
                pass
            held.set()

    waiter = threading.Thread(target=wait)
    with fsio.locked(path):
        waiter.start()
        assert waiting.wait(10)
        time.sleep(0.1)
        fsio.delete(path)
    waiter.join(10)
    assert held.is_set()


def test_an_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("there", "dangling"):
        with pytest.raises(RefusedError, match="--force"):
            fsio.check_writable(tmp_path / name, force=False)
        fsio.check_writable(tmp_path / name, force=True)
    fsio.check_writable(tmp_path / "new" / "file", force=False)
    with pytest.raises(OSError, match="there"):
        fsio.check_writable(tmp_path / "there" / "file", force=False)
    assert names(tmp_path) == {"there", "dangling", "new"}
