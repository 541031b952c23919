"""Directories that appear whole or not at all, with a manifest that finds any damage."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptcli.base.errors import DataError, RefusedError
from gptcli.base.escape import shown
from gptcli.base.fsio import operations
from gptcli.base.fsio.files import check_writable, read_json, sha256, write_json
from gptcli.base.fsio.locks import LOCK, locked

MANIFEST = "manifest.json"


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that becomes `path`, with a manifest, when the block ends well.

    An existing `path` is moved away first: the caller has decided that it may be replaced.
    """
    operations.make_directory(path.parent)
    prefix = f".tmp-{path.name}-"
    sweep_abandoned(path.parent, f"{glob.escape(prefix)}*", seconds=0)
    temporary = operations.make_temporary_directory(path.parent, prefix)
    try:
        with locked(temporary):  # says that its writer lives
            yield temporary
            publish(temporary, path)
    except BaseException:
        operations.remove_tree(temporary)
        raise


def check_replaceable(path: Path, *, force: bool) -> None:
    """Before any work: check_writable, and RefusedError where `path` is a file or a directory of others' files."""
    check_writable(path, force=force)
    if path.is_file():
        raise RefusedError(f"{shown(str(path))}: is a file, and the output a directory; name another output")
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise RefusedError(f"{shown(str(path))}: holds other files than gptcli makes there; name another output")


def publish(temporary: Path, path: Path) -> None:
    """Sync every file, write the manifest last, and rename the directory to `path`; its lock, if any, goes with it."""
    described = _describe(temporary)
    for name in described:
        with (temporary / name).open("rb") as opened:
            operations.sync(temporary / name, opened.fileno())
    write_json(temporary / MANIFEST, {"files": described})
    operations.grant(temporary, 0o777)
    operations.sync_directory(temporary)
    if os.path.lexists(path):
        _hide(path)
    operations.rename(temporary, path)
    operations.sync_directory(path.parent)
    if temporary.parent != path.parent:
        operations.sync_directory(temporary.parent)
    operations.unlink(path / LOCK)
    _empty_trash(path)


def verify(directory: Path) -> set[str]:
    """Check every file against the manifest; DataError names the first that is missing, cut or changed.

    -> the names of the files that the manifest describes.
    """
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
    return set(files)


def _describe(directory: Path) -> dict[str, dict[str, int | str]]:
    return {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(directory.iterdir())
        if file.name not in (MANIFEST, LOCK)
    }


def delete(path: Path) -> None:
    """Remove a file or directory that may hold much: out of sight at once by a rename, then for good."""
    operations.remove_tree(_hide(path))


def _hide(path: Path) -> Path:
    """Rename to a name that says it may be removed."""
    _empty_trash(path)
    trash = path.parent / f".trash-{path.name}-{os.getpid()}-{time.monotonic_ns()}"
    operations.rename(path, trash)
    return trash


def _empty_trash(path: Path) -> None:
    """Remove what a killed process left of an earlier `path`."""
    for left in path.parent.glob(f".trash-{glob.escape(path.name)}-*"):
        operations.remove_tree(left)


def sweep(directory: Path) -> None:
    """Remove what a killed writer left; only while holding the directory's lock."""
    for path in directory.iterdir():
        if path.name.startswith((".tmp-", ".trash-")):
            operations.remove_tree(path)


def sweep_abandoned(directory: Path, pattern: str, *, seconds: float) -> None:
    """Remove what matches `pattern`, has not changed for `seconds`, and is not a directory that a process holds."""
    for path in directory.glob(pattern):
        with suppress(OSError, RefusedError):
            if time.time() - path.lstat().st_mtime < seconds:
                continue
            if path.is_dir() and not path.is_symlink():
                with locked(path):
                    operations.remove_tree(path)
            else:
                operations.unlink(path)
