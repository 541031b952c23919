"""One writer a directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from gptcli.base.errors import RefusedError
from gptcli.base.escape import shown
from gptcli.base.fsio.operations import make_directory

LOCK = "lock"
NAMING_SECONDS = 1.0  # within which a holder has written who it is


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


def _take_lock(directory: Path, wait: Callable[[str], None] | None) -> IO[str]:
    named_by = time.monotonic() + NAMING_SECONDS
    while True:
        make_directory(directory)
        file = open(directory / LOCK, "a+")  # noqa: SIM115
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                file.seek(0)
                holder = shown(file.read(200).strip())
                if not holder and time.monotonic() < named_by:  # it has just begun, or is about to end
                    file.close()
                    time.sleep(0.01)
                    continue
                holder = holder or "another process"
                if wait is None:
                    raise RefusedError(f"{shown(str(directory))}: busy: {holder}; wait for it or stop it") from None
                wait(f"{shown(str(directory))}: busy: {holder}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(directory / LOCK)):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # its directory was published or removed meanwhile
