"""One writer a directory: a file named `lock` that says who writes, under the kernel's lock (flock).

Where the file system has no locks the file alone says it: nothing keeps a second writer out there, which is told, and
whether the one that it names still lives is known on the same machine only.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gptcli.base.errors import RefusedError
from gptcli.base.escape import escape
from gptcli.base.fsio import operations

LOCK = "lock"
HELD = {errno.EWOULDBLOCK, errno.EACCES}
NAMING_SECONDS = 1.0  # within which a holder has written who it is
LOOKING_SECONDS = 0.5  # is_held keeps the lock for microseconds: whoever has it longer writes


@contextmanager
def locked(directory: Path, *, wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `directory` as its only writer; the kernel frees the lock however the process ends.

    Where there is a holder: RefusedError names it or, with `wait`, that function is told and the lock waited for.
    """
    with _take_lock(directory, wait) as file:
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
        file.truncate(0)


def is_held(directory: Path) -> bool:
    """Return whether a process writes to `directory`. Looking never makes a writer fail, which tries again."""
    try:
        with (directory / LOCK).open("rb") as file:
            holder = file.read(200).decode(errors="replace")
            if not holder:  # a writer that has ended, or has only just begun
                return False
            try:
                operations.lock(directory / LOCK, file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return error.errno in HELD or _lives_here(holder)
    except OSError:
        pass
    return False


def _lives_here(holder: str) -> bool:
    """Return whether the process that a lock file names is one of this machine and there."""
    match = re.match(r"pid (\d{1,9}) on (\S+) since ", holder)
    if not match or match[2] != socket.gethostname():
        return False
    try:
        os.kill(int(match[1]), 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _take_lock(directory: Path, wait: Callable[[str], None] | None) -> IO[str]:
    while True:
        operations.make_directory(directory)
        file = open(directory / LOCK, "a+")  # noqa: SIM115
        try:
            _lock(file, directory, wait)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(directory / LOCK)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # its directory was published or removed meanwhile


def _lock(file: IO[str], directory: Path, wait: Callable[[str], None] | None) -> None:
    """Lock an open file, or go without where the file system has no locks."""
    started = time.monotonic()
    while not _try_to_lock(file, directory):
        file.seek(0)
        holder = escape(file.read(200).strip())
        # One that has only begun, or is about to end, has no name there yet; one who only looks never has.
        if time.monotonic() - started < (LOOKING_SECONDS if holder else NAMING_SECONDS):
            time.sleep(0.01)
            continue
        holder = holder or "another process"
        if wait is None:
            raise RefusedError(f"{escape(str(directory))}: busy: {holder}; wait for it or stop it")
        wait(f"{escape(str(directory))}: busy: {holder}; waiting for it")
        operations.lock(directory / LOCK, file.fileno(), fcntl.LOCK_EX)
        return


def _try_to_lock(file: IO[str], directory: Path) -> bool:
    try:
        operations.lock(directory / LOCK, file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        if error.errno not in operations.UNSUPPORTED:
            raise
        operations.do_without("locks", directory, error, "nothing keeps a second writer out")
    return True


@contextmanager
def locked_if_left(directory: Path) -> Iterator[bool]:
    """Hold a directory that its writer may have left; the block gets False where that cannot be known: it is held, or
    the file system has no locks."""
    with open(directory / LOCK, "a+") as file:
        try:
            operations.lock(directory / LOCK, file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
