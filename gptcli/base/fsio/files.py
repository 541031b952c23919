"""Files that appear whole or not at all, and a file that grows by whole lines."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from gptcli.base.errors import ConfigError, DataError, RefusedError
from gptcli.base.escape import escape
from gptcli.base.fsio import operations
from gptcli.base.fsio.leftovers import leftovers

POINTER_BYTES = 4096  # the longest path


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that takes the place of `path` when the block ends well, and leaves no trace when it does
    not. Where `path` is a link, the file that it names is replaced. What killed writers of `path` left is removed."""
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    _sweep_unlocked(leftovers(path.parent, "tmp", re.escape(path.name)))
    file, temporary = _create_locked(path.parent, f".tmp-{path.name}-")
    with _removed_on_error(temporary), file:
        yield file
        file.flush()
        operations.sync(temporary, file.fileno())
        operations.rename(temporary, path)
    operations.sync_directory(path.parent)


@contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    """Remove a temporary file where the block that writes it fails."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            operations.unlink(temporary)
        raise


def _create_locked(directory: Path, prefix: str) -> tuple[BinaryIO, Path]:
    """Create a temporary file whose lock says that its writer lives."""
    while True:
        file, temporary = operations.create_temporary(directory, prefix)
        with suppress(OSError):  # a file system without locks: nothing is swept there either
            operations.lock(temporary, file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink or not temporary.parent.exists():
            return file, temporary
        file.close()  # swept between its creation and its lock


def _sweep_unlocked(temporaries: Iterable[Path]) -> None:
    """Remove the temporary files whose writers are dead."""
    for path in temporaries:
        with suppress(OSError), path.open("r+b") as file:  # NFS locks only what may be written
            operations.lock(path, file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            operations.unlink(path)


def write_file(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, document: Any) -> None:
    """Replace `path` by a document as strict JSON, whole or not at all."""
    write_file(path, strict_json(document))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file inside of a new_directory, which makes it durable and whole."""
    with operations.create(path) as file:
        yield file


def write_new_file(path: Path, content: bytes | str) -> None:
    """Write a new file inside of a new_directory."""
    with new_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_new_json(path: Path, document: Any) -> None:
    """Write a new file inside of a new_directory, the document as strict JSON."""
    write_new_file(path, strict_json(document))


def strict_json(document: Any) -> str:
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


@contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """Open a file to add to, and create it where it is missing. Flush after every line; `sync_file` where it must
    last."""
    is_new = not path.exists()
    with operations.open_to_append(path) as file:
        if is_new:
            operations.sync_directory(path.parent)
        yield file


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as file:
        operations.sync(path, file.fileno())


def read_json(path: Path) -> Any:
    """Read the JSON document in `path`. DataError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{escape(str(path))}: not JSON ({error}); the file is damaged") from None


def remove_file(path: Path) -> None:
    """Remove a file or link that may be gone already."""
    operations.unlink(path)


def point(pointer: Path, target: str) -> None:
    """Make `pointer` name `target`, a path relative to its own directory, in one step: a symbolic link or, where the
    file system has none, a small file that holds the name."""
    temporary = pointer.parent / f".tmp-{pointer.name}-{os.getpid()}"
    operations.unlink(temporary)
    with _removed_on_error(temporary):
        if not operations.link(target, temporary):
            with operations.create(temporary) as file:
                file.write(os.fsencode(target) + b"\n")
                file.flush()
                operations.sync(temporary, file.fileno())
        operations.rename(temporary, pointer)
    operations.sync_directory(pointer.parent)


def pointed(pointer: Path) -> str | None:
    """Return what a link, or a small file made by `point`, names; None where `pointer` is neither."""
    if pointer.is_symlink():
        return os.readlink(pointer)
    if not pointer.is_file() or pointer.stat().st_size > POINTER_BYTES:
        return None
    name = os.fsdecode(pointer.read_bytes().removesuffix(b"\n"))
    return None if not name or "\0" in name or "\n" in name or os.path.isabs(name) else name


def follow(path: Path) -> Path:
    """Return the directory that a small file made by `point` names, `path` itself where it is no such file. The system
    follows links by itself."""
    name = None if path.is_symlink() else pointed(path)
    # os.path's isdir is False for what cannot be a name at all, such as the content of some other small file.
    return path.parent / name if name is not None and os.path.isdir(path.parent / name) else path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_apart(path: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse an output that is one of the inputs, or a directory that holds one: replacing it would take that."""
    whole = path.resolve()
    for given in inputs:
        if given is not None and (whole == given.resolve() or whole in given.resolve().parents):
            raise RefusedError(
                f"{escape(str(path))}: would replace the input {escape(str(given))}; name another output"
            )


def check_writable(path: Path, *, force: bool) -> None:
    """Check before any work that an output may be made or replaced, and that its directory takes files.

    RefusedError where `path` exists without `force`, ConfigError where it is a device or the like, OSError where the
    directory does not take files.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{escape(str(path))}: is no regular file; name another output")
    if os.path.lexists(path) and not force:
        raise RefusedError(f"{escape(str(path))}: exists; pass --force to replace it or name another output")
    operations.make_directory(path.parent)
    try:
        with tempfile.TemporaryFile(prefix=".tmp-", dir=path.parent):
            pass
    except OSError as error:  # name the user's directory, not the probe
        raise OSError(error.errno, error.strerror, str(path.parent)) from None
