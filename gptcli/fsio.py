"""Every write that must survive a crash: temporary file, fsync, rename; a manifest for directories; one writer.

What is being written has a name that begins with `.tmp-`, what is being deleted one that begins with `.trash-`; both
are swept by the next writer that holds the directory's lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from gptcli.display import shown
from gptcli.errors import DataError, RefusedError

MANIFEST = "manifest.json"
LOCK = "lock"
BLOCK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends well, and leaves no trace when it does not."""
    descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.rename(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_file(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, document: Any) -> None:
    write_file(path, json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The document in `path`; DataError where it is not strict JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown(str(path))}: not JSON ({error}); the file is damaged") from None


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes `path`, with a manifest, when the block ends well.

    An existing `path` is moved away first: the caller has decided that it may be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=path.parent))
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Sync every file, write the manifest last, and rename the directory to `path`; its lock, if any, goes with it."""
    write_json(temporary / MANIFEST, {"files": _describe(temporary)})
    for file in temporary.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    os.chmod(temporary, 0o777 & ~_umask())
    sync_directory(temporary)
    old = _hide(path) if os.path.lexists(path) else None
    os.rename(temporary, path)
    sync_directory(path.parent)
    (path / LOCK).unlink(missing_ok=True)
    if old is not None:
        _remove(old)


def verify(directory: Path) -> None:
    """Check every file against the manifest; DataError names the first that is missing, cut or changed."""
    if not (directory / MANIFEST).is_file():
        raise DataError(f"{shown(str(directory))}: no {MANIFEST}; it is not complete")
    manifest = read_json(directory / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise DataError(f"{shown(str(directory / MANIFEST))}: not a manifest; the file is damaged")
    for name, wanted in files.items():
        file = directory / name
        if "/" in name or not isinstance(wanted, dict) or not file.is_file():
            raise DataError(f"{shown(str(file))}: missing; the directory is damaged")
        if file.stat().st_size != wanted.get("bytes"):
            raise DataError(
                f"{shown(str(file))}: has {file.stat().st_size} bytes, want {wanted.get('bytes')}; it is cut"
            )
        if sha256(file) != wanted.get("sha256"):
            raise DataError(f"{shown(str(file))}: its content has changed (sha256 differs); it is damaged")


def _describe(directory: Path) -> dict[str, dict[str, int | str]]:
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(directory.iterdir())
        if file.name not in (MANIFEST, LOCK)
    }


def delete(path: Path) -> None:
    """Remove a file or directory that may hold much: out of sight at once by a rename, then for good."""
    _remove(_hide(path))


def _hide(path: Path) -> Path:
    trash = path.parent / f".trash-{os.getpid()}-{time.monotonic_ns()}"
    os.rename(path, trash)
    return trash


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(directory: Path) -> None:
    """Remove what a killed writer left; only while holding the directory's lock."""
    for path in directory.iterdir():
        if path.name.startswith((".tmp-", ".trash-")):
            _remove(path)


def sweep_abandoned(directory: Path, pattern: str, *, seconds: float) -> None:
    """Remove what matches `pattern`, has not changed for `seconds`, and is not a directory that a process holds."""
    for path in directory.glob(pattern):
        with suppress(OSError, RefusedError):
            if time.time() - path.lstat().st_mtime < seconds:
                continue
            if path.is_dir() and not path.is_symlink():
                with locked(path):
                    _remove(path)
            else:
                path.unlink()


def point(link: Path, target: str) -> None:
    """Make the symbolic link `link` name `target`, in one step."""
    temporary = link.parent / f".tmp-{link.name}-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.rename(temporary, link)
    sync_directory(link.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` durable (POSIX wants its own fsync for that)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(path: Path, *, force: bool) -> None:
    """Before any work: the output may be made or replaced, and its directory takes files.

    RefusedError where `path` exists without `force`; OSError where the directory does not take files.
    """
    if os.path.lexists(path) and not force:
        raise RefusedError(f"{shown(str(path))}: exists; pass --force to replace it or name another output")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(prefix=".tmp-", dir=path.parent):
            pass
    except OSError as error:  # name the user's directory, not the probe
        raise OSError(error.errno, error.strerror, str(path.parent)) from None


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
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / LOCK, "a+")  # noqa: SIM115
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                file.seek(0)
                holder = shown(file.read(200).strip()) or "another process"
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
