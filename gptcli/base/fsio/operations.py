"""The operations that change the file system, each a function; all other durable writing is made of these.

They all go through `perform`. A test puts a function of its own there, to count operations, to end the process before
or after the n-th, to let one fail as on a full disk, or to record them and replay what a power loss would have left.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast


def _directly(name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:  # noqa: ARG001
    return act()


perform: Callable[[str, tuple[Any, ...], Callable[[], Any]], Any] = _directly


def _do(name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:
    """Perform an operation; an OSError names the path that the user knows, not the temporary one."""
    try:
        return perform(name, arguments, act)
    except OSError as error:
        place = error.filename or next(argument for argument in arguments if isinstance(argument, Path))
        raise OSError(error.errno, error.strerror, str(_final(Path(place)))) from None


def _final(path: Path) -> Path:
    """What a temporary path is to become: `runs/.tmp-step-000005-ab12/x` is `runs/step-000005/x`."""
    names = (name[5:].rpartition("-")[0] or name if name.startswith(".tmp-") else name for name in path.parts)
    return Path(*names)


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
    """A new file, open for writing."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = _do("create", (path,), lambda: os.open(path, flags, 0o666))
    return cast(BinaryIO, io.BufferedWriter(_File(descriptor, path), 1 << 20))


def create_temporary(directory: Path, prefix: str) -> tuple[BinaryIO, Path]:
    """A new file of an unused name, open for writing."""
    descriptor, name = _do("create", (directory / prefix,), lambda: tempfile.mkstemp(prefix=prefix, dir=directory))
    path = directory / Path(name).name  # relative where the user's was
    return cast(BinaryIO, io.BufferedWriter(_File(descriptor, path), 1 << 20)), path


def open_to_append(path: Path) -> BinaryIO:
    """A file open for writing at its end, made where it is not there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = _do("open", (path,), lambda: os.open(path, flags, 0o666))
    return cast(BinaryIO, io.BufferedWriter(_File(descriptor, path)))


def sync(path: Path, descriptor: int) -> None:
    """Make the content of an open file durable."""
    _do("sync", (path,), lambda: os.fsync(descriptor))


def sync_directory(directory: Path) -> None:
    """Make names in `directory` durable (POSIX wants its own fsync for that)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        _do("sync directory", (directory,), lambda: os.fsync(descriptor))
    finally:
        os.close(descriptor)


def grant(path: Path, mode: int) -> None:
    """Give `path` the permissions of `mode` that the umask leaves."""
    mask = os.umask(0)
    os.umask(mask)
    _do("chmod", (path,), lambda: os.chmod(path, mode & ~mask))


def rename(source: Path, target: Path) -> None:
    _do("rename", (source, target), lambda: os.rename(source, target))


def link(target: str, path: Path) -> None:
    """A symbolic link at `path` that names `target`."""
    _do("link", (target, path), lambda: os.symlink(target, path))


def unlink(path: Path) -> None:
    """Remove a file or link that may be gone already."""
    with suppress(FileNotFoundError):
        _do("unlink", (path,), lambda: os.unlink(path))


def make_temporary_directory(directory: Path, prefix: str) -> Path:
    name = _do("mkdir", (directory / prefix,), lambda: tempfile.mkdtemp(prefix=prefix, dir=directory))
    return directory / Path(name).name


def make_directory(path: Path) -> None:
    """Make a directory, and those above it, durably, where they are not there."""
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
