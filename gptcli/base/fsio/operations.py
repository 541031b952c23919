"""The operations that change the file system, each a function; all other durable writing is made of these.

They all go through `perform`. A test puts a function of its own there, to count operations, to end the process before
or after the n-th, to let one fail as on a full disk, or to record them and replay what a power loss would have left.

Some file systems (cloud drives, SMB, FAT, FUSE, network mounts without a lock daemon) lack links, locks or the fsync
of a directory. What can be done without is noted once in `lacking`, for whoever talks to the user to pass on.

Durable means what fsync means on the platform: on Linux that a power loss does not take it. macOS keeps such writes in
the drive's cache, so that there the promise covers crashes of programs and of the system alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import io
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from gptcli.base.escape import escape

T = TypeVar("T")

# How file systems refuse what they do not have. Of a link, some say that it is not permitted.
UNSUPPORTED = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY, errno.ENOLCK}
NO_LINKS = UNSUPPORTED | {errno.EPERM, errno.EACCES}
NO_SYNC = UNSUPPORTED | {errno.EACCES}

lacking: dict[str, str] = {}  # ability -> the warning about its absence, until take_warnings


def _directly(name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:  # noqa: ARG001
    return act()


perform: Callable[[str, tuple[Any, ...], Callable[[], Any]], Any] = _directly


def _do(name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:
    """Perform an operation; raise its OSError with the final path, which the user knows, not the temporary one."""
    try:
        return perform(name, arguments, act)
    except OSError as error:
        place = error.filename or next(argument for argument in arguments if isinstance(argument, Path))
        raise OSError(error.errno, error.strerror, str(_final(Path(place)))) from None


def _final(path: Path) -> Path:
    """Return what a temporary path is to become: `runs/.tmp-step-000005-ab12/x` is `runs/step-000005/x`."""
    names = (name[5:].rpartition("-")[0] or name if name.startswith(".tmp-") else name for name in path.parts)
    return Path(*names)


def do_without(ability: str, path: Path, error: OSError, consequence: str) -> None:
    """Note that the file system at `path` lacks an ability, and what follows from that."""
    if ability not in _told:
        _told.add(ability)
        lacking[ability] = (
            f"{escape(str(_final(path)))}: the file system has no {ability} ({error.strerror}); {consequence}"
        )


_told: set[str] = set()


def take_warnings() -> list[str]:
    """Return the warnings about what file systems lack that nobody has passed on yet."""
    warnings = list(lacking.values())
    lacking.clear()
    return warnings


class _File(io.RawIOBase):
    """A file being written; every block that reaches the kernel is an operation."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self.descriptor, self.path = descriptor, path

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def write(self, block: Any, /) -> int:
        view = memoryview(block).cast("B")
        return cast(int, _do("write", (self.path, view), lambda: os.write(self.descriptor, view)))

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                os.close(self.descriptor)


def create(path: Path) -> BinaryIO:
    """Create a file and open it for writing."""
    return _opened(_do("create", (path,), lambda: _create(path)), path)


def create_temporary(directory: Path, prefix: str) -> tuple[BinaryIO, Path]:
    """Create a file of an unused name and open it for writing. It has the permissions of any new file from the start,
    so that nothing needs to change them later."""
    descriptor, path = _do("create", (directory / prefix,), lambda: _at_unused_name(directory / prefix, _create))
    return _opened(descriptor, path), path


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _opened(descriptor: int, path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedWriter(_File(descriptor, path), 1 << 20))


def _at_unused_name(prefix: Path, make: Callable[[Path], T]) -> tuple[T, Path]:
    """Return what `make` made at a name of that prefix which nothing else has, and the name."""
    while True:
        path = prefix.parent / f"{prefix.name}{secrets.token_hex(4)}"
        with suppress(FileExistsError):
            return make(path), path


def open_to_append(path: Path) -> BinaryIO:
    """Open a file for writing at its end; create it where it is missing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = _do("open", (path,), lambda: os.open(path, flags, 0o666))
    return cast(BinaryIO, io.BufferedWriter(_File(descriptor, path)))


def sync(path: Path, descriptor: int) -> None:
    """Make the content of an open file durable."""
    _sync("sync", path, descriptor)


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable; POSIX demands an fsync of its own for them."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError as error:  # writable and not readable
        do_without("fsync of directories", directory, error, CONSEQUENCE_OF_NO_SYNC)
        return
    try:
        _sync("sync directory", directory, descriptor)
    finally:
        os.close(descriptor)


CONSEQUENCE_OF_NO_SYNC = "a power loss may take what was saved last"


def _sync(name: str, path: Path, descriptor: int) -> None:
    try:
        _do(name, (path,), lambda: os.fsync(descriptor))
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
        ability = "fsync of directories" if name == "sync directory" else "fsync"
        do_without(ability, path, error, CONSEQUENCE_OF_NO_SYNC)


def rename(source: Path, target: Path) -> None:
    """Give `source` the name `target`, whose file, if there is one, is replaced."""
    _do("rename", (source, target), lambda: os.rename(source, target))


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step. Return False where the system or the file system cannot."""
    try:
        _do("exchange", (one, other), lambda: _exchange(one, other))
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def _exchange(one: Path, other: Path) -> None:
    """Call renameat2 with RENAME_EXCHANGE, as the manual page rename(2) describes it."""
    swap = _renameat2()
    if swap is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_fdcwd, rename_exchange = -100, 2
    if swap(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@functools.cache
def _renameat2() -> Any:
    """Return the C library's renameat2, None where there is none: other systems than Linux, old libraries."""
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return function


def link(target: str, path: Path) -> bool:
    """Make `path` a symbolic link to `target`. Return False where the file system has no links."""
    try:
        _do("link", (target, path), lambda: os.symlink(target, path))
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return False
    return True


def lock(path: Path, descriptor: int, how: int) -> None:
    """Take a lock of the kernel on an open file; `how` is as in flock(2)."""
    _do("lock", (path,), lambda: fcntl.flock(descriptor, how))


def unlink(path: Path) -> None:
    """Remove a file or link that may be gone already."""
    with suppress(FileNotFoundError):
        _do("unlink", (path,), lambda: os.unlink(path))


def make_temporary_directory(directory: Path, prefix: str) -> Path:
    """Make a directory of an unused name."""
    _, path = _do("mkdir", (directory / prefix,), lambda: _at_unused_name(directory / prefix, os.mkdir))
    return cast(Path, path)


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, durably, where they are missing."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with suppress(FileExistsError):  # another process made it meanwhile, or it is a file, which the next write tells
        _do("mkdir", (path,), lambda: os.mkdir(path))
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory and what is below it, or a file; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        _do("remove", (path,), lambda: shutil.rmtree(path, ignore_errors=True))
    else:
        unlink(path)
