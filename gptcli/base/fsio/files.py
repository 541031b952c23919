"""Files that appear whole or not at all, and a file that grows by whole lines."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gptcli.base.errors import ConfigError, DataError, RefusedError
from gptcli.base.escape import shown
from gptcli.base.fsio import operations


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    Of a link, the file that it names is replaced. What killed writers of the same path left is removed.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    prefix = f".tmp-{path.name}-"
    _sweep_unlocked(path.parent, prefix)
    file, temporary = _create_locked(path.parent, prefix)
    try:
        with file:
            yield file
            file.flush()
            operations.sync(temporary, file.fileno())
            operations.grant(temporary, 0o666)
            operations.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            operations.unlink(temporary)
        raise
    operations.sync_directory(path.parent)


def _create_locked(directory: Path, prefix: str) -> tuple[BinaryIO, Path]:
    """A temporary file whose lock says that its writer lives."""
    while True:
        file, temporary = operations.create_temporary(directory, prefix)
        with suppress(OSError):  # a file system without locks: nothing is swept there either
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink or not temporary.parent.exists():
            return file, temporary
        file.close()  # swept between its creation and its lock


def _sweep_unlocked(directory: Path, prefix: str) -> None:
    """Remove the temporary files whose writers are dead."""
    with os.scandir(directory) as entries:
        left = [entry.path for entry in entries if entry.name.startswith(prefix) and entry.is_file()]
    for name in left:
        with suppress(OSError), open(name, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            operations.unlink(Path(name))


def write_file(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, document: Any) -> None:
    write_file(path, _strict_json(document))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write inside of a new_directory, which makes it durable and whole."""
    with operations.create(path) as file:
        yield file


def write_new_file(path: Path, content: bytes | str) -> None:
    """The same for a content that is there already."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_new_json(path: Path, document: Any) -> None:
    write_new_file(path, _strict_json(document))


def _strict_json(document: Any) -> str:
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file to add to, made where it is not there; flush after every line, `sync_file` where it must last."""
    is_new = not path.exists()
    with operations.open_to_append(path) as file:
        if is_new:
            operations.sync_directory(path.parent)
        yield file


def sync_file(path: Path) -> None:
    """Make what was written to a file durable."""
    with path.open("rb") as file:
        operations.sync(path, file.fileno())


def read_json(path: Path) -> Any:
    """The document in `path`; DataError where it is not strict JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(str(path))}: not JSON ({error}); the file is damaged") from None


def remove_file(path: Path) -> None:
    """Remove a file or link that may be gone already."""
    operations.unlink(path)


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` name `target`, in one step."""
    temporary = link.parent / f".tmp-{link.name}-{os.getpid()}"
    operations.unlink(temporary)
    operations.link(target, temporary)
    try:
        operations.rename(temporary, link)
    except BaseException:
        with suppress(OSError):
            operations.unlink(temporary)
        raise
    operations.sync_directory(link.parent)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_apart(path: Path, inputs: Iterable[Path | None]) -> None:
    """RefusedError where `path` is one of the inputs, or a directory that holds one: to replace it would take that."""
    whole = path.resolve()
    for given in inputs:
        if given is not None and (whole == given.resolve() or whole in given.resolve().parents):
            raise RefusedError(f"{shown(str(path))}: would replace the input {shown(str(given))}; name another output")


def check_writable(path: Path, *, force: bool) -> None:
    """Before any work: the output may be made or replaced, and its directory takes files.

    RefusedError where `path` exists without `force`, ConfigError where it is a device or the like, OSError where the
    directory does not take files.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{shown(str(path))}: is no regular file; name another output")
    if os.path.lexists(path) and not force:
        raise RefusedError(f"{shown(str(path))}: exists; pass --force to replace it or name another output")
    operations.make_directory(path.parent)
    try:
        with tempfile.TemporaryFile(prefix=".tmp-", dir=path.parent):
            pass
    except OSError as error:  # name the user's directory, not the probe
        raise OSError(error.errno, error.strerror, str(path.parent)) from None
