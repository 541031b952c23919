"""Directories that appear whole or not at all, with a manifest that finds any damage and tells who made them.

A directory that takes the place of another is swapped with it in one step. Where the file system cannot do that, the
old one is called `.old-NAME-TIME` for the moment: it gets its name back where the new one cannot be put in place, and
where the process ended in between the next writer gives it back.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gptcli.base.errors import DataError, RefusedError
from gptcli.base.escape import escape
from gptcli.base.fsio import operations
from gptcli.base.fsio.files import check_writable, read_json, sha256, sync_file, write_json
from gptcli.base.fsio.leftovers import leftovers
from gptcli.base.fsio.locks import LOCK, locked, locked_if_left

MANIFEST = "manifest.json"
FORMAT, VERSION = "gptcli-manifest", 1
MANIFEST_BYTES = 64 << 20  # of 300,000 files
LOCK_BYTES = 512
MAKER = b"gptcli"
ADDED = {"audit.json": "gptcli audit 1"}  # what gptcli adds to a directory that is there, and the format it names
Described = dict[str, int | str]  # of a file: bytes, sha256
NAMING_FILES = ("config.json", "index.json", "README.md")  # of a checkpoint, prepared text, an export


@contextmanager
def new_directory(path: Path, known: Mapping[str, Described] | None = None) -> Iterator[Path]:
    """Make a directory to fill that becomes `path`, with a manifest, when the block ends well.

    `known`: what `describe` said of files that others have made durable by then.

    It takes the place of an existing `path`: the caller has decided that it may be replaced.
    """
    operations.make_directory(path.parent)
    restore(path)
    sweep_abandoned(leftovers(path.parent, "tmp", re.escape(path.name)), seconds=0)
    temporary = operations.make_temporary_directory(path.parent, f".tmp-{path.name}-")
    try:
        with locked(temporary):  # says that its writer lives
            yield temporary
            publish(temporary, path, known or {})
    except BaseException:
        operations.remove_tree(temporary)
        raise


def check_replaceable(path: Path, *, force: bool) -> None:
    """Check before any work that a directory may be made at `path`, or replace what is there.

    RefusedError where it exists without `force`, is a file, or holds anything that gptcli did not make; else as
    check_writable. What a writer that was killed had hidden of `path` is brought back first.
    """
    restore(path)
    check_writable(path, force=force)
    if path.is_file():
        raise RefusedError(f"{escape(str(path))}: is a file, and the output a directory; name another output")
    if path.is_dir() and any(path.iterdir()) and (reason := foreign(path)):
        raise RefusedError(
            f"{escape(str(path))}: {reason}, so that --force does not replace it; name another output or remove it"
        )


def foreign(directory: Path) -> str | None:
    """Return what speaks against gptcli having made all of a directory, None where it has.

    Its own directories hold a manifest with its mark that names every file in them but those in ADDED. Before there was
    a mark, manifests held nothing but names, sizes and hashes: such a directory is taken for its own where all of these
    are right and one of its files names gptcli.
    """
    try:
        if (directory / MANIFEST).stat().st_size > MANIFEST_BYTES:
            return f"its {MANIFEST} is none of gptcli's"
        manifest = read_json(directory / MANIFEST)
    except FileNotFoundError:
        return f"holds no {MANIFEST} of gptcli's"
    except (DataError, OSError):
        return f"its {MANIFEST} is none of gptcli's"
    files = _files_of(manifest)
    if files is None:
        return f"its {MANIFEST} is none of gptcli's"
    for entry in sorted(directory.iterdir()):
        made = entry.name in (MANIFEST, *files) or (entry.name == LOCK and _is_lock(entry)) or _is_added(entry)
        if not made or entry.is_symlink() or not entry.is_file():
            return f"holds {escape(entry.name)}, which gptcli did not make"
    if "format" in manifest:
        return None
    try:
        verify(directory)
    except (DataError, OSError):
        return f"its {MANIFEST} is none of gptcli's, or its files have changed"
    named = (directory / name for name in NAMING_FILES if name in files)
    return None if any(MAKER in file.read_bytes() for file in named) else "none of its files names gptcli"


def _is_lock(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > LOCK_BYTES:
        return False
    content = path.read_bytes()
    return not content or content.startswith(b"pid ")


def _is_added(path: Path) -> bool:
    if path.name not in ADDED or not path.is_file() or path.stat().st_size > MANIFEST_BYTES:
        return False
    try:
        document = read_json(path)
    except DataError:
        return False
    return isinstance(document, dict) and document.get("format") == ADDED[path.name]


def publish(temporary: Path, path: Path, known: Mapping[str, Described] = MappingProxyType({})) -> None:
    """Move the finished directory `temporary` to `path`: sync every file, write the manifest last, then rename. The
    lock file, if any, is removed. `known`: as in new_directory."""
    names = sorted({file.name for file in temporary.iterdir()} - {MANIFEST, LOCK} | known.keys())
    described = {name: known[name] if name in known else describe(temporary / name) for name in names}
    for name in names:
        if name not in known:
            sync_file(temporary / name)
    write_json(temporary / MANIFEST, {"format": FORMAT, "version": VERSION, "files": described})
    operations.sync_directory(temporary)
    old = _put(temporary, path)
    operations.sync_directory(path.parent)
    if temporary.parent != path.parent:
        operations.sync_directory(temporary.parent)
    operations.unlink(path / LOCK)
    if old is not None:
        operations.remove_tree(_hide(old, path))
    _empty_trash(path)


def _put(temporary: Path, path: Path) -> Path | None:
    """Make a directory `path`. Return where the one that had this name is now."""
    if not os.path.lexists(path):
        operations.rename(temporary, path)
        return None
    if operations.exchange(temporary, path):
        return temporary
    old = path.parent / f".old-{path.name}-{time.time_ns()}"
    try:
        operations.rename(path, old)
        operations.rename(temporary, path)
    except BaseException:
        if not os.path.lexists(path):
            with suppress(OSError):
                operations.rename(old, path)
        raise
    return old


def restore(path: Path) -> None:
    """Give back to `path` what a writer that was killed had renamed to replace it; remove that where the new one was
    put in place."""
    for old in leftovers(path.parent, "old", re.escape(path.name)):
        _settle(old, path)


def _settle(old: Path, path: Path) -> None:
    if os.path.lexists(path):
        operations.remove_tree(_hide(old, path))
    else:
        operations.rename(old, path)
        operations.sync_directory(path.parent)


def verify(directory: Path, skip: Callable[[str], bool] = lambda _name: False) -> set[str]:
    """Check every file against the manifest, but for names to `skip`. Return the names of the files that it describes.

    DataError names the first that is missing, cut or changed.
    """
    if not (directory / MANIFEST).is_file():
        raise DataError(f"{escape(str(directory))}: no {MANIFEST}; it is not complete")
    files = _files_of(read_json(directory / MANIFEST))
    if files is None:
        raise DataError(f"{escape(str(directory / MANIFEST))}: not a manifest; the file is damaged")
    for name, wanted in files.items():
        file = directory / name
        if "/" in name or not isinstance(wanted, dict) or not file.is_file():
            raise DataError(f"{escape(str(file))}: missing; the directory is damaged")
        if file.stat().st_size != wanted.get("bytes"):
            raise DataError(
                f"{escape(str(file))}: has {file.stat().st_size} bytes, want {wanted.get('bytes')}; it is cut"
            )
        if not skip(name) and sha256(file) != wanted.get("sha256"):
            raise DataError(f"{escape(str(file))}: its content has changed (sha256 differs); it is damaged")
    return set(files)


def _files_of(manifest: Any) -> dict[str, Any] | None:
    """Return the names in a manifest, with or without the mark, and what it says of each; None where it is none."""
    match manifest:
        case {"files": dict(files), **rest} if rest in ({}, {"format": FORMAT, "version": VERSION}):
            return files
    return None


def describe(file: Path) -> Described:
    """Return what a manifest says of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def delete(path: Path) -> None:
    """Remove a file or directory that may hold much: out of sight at once by a rename, then for good."""
    operations.remove_tree(_hide(path, path))


def _hide(path: Path, owner: Path) -> Path:
    """Rename to a name beside `owner` that says that it may be removed."""
    _empty_trash(owner)
    trash = owner.parent / f".trash-{owner.name}-{os.getpid()}-{time.monotonic_ns()}"
    operations.rename(path, trash)
    return trash


def _empty_trash(path: Path) -> None:
    """Remove what a killed process left of an earlier `path`."""
    for left in leftovers(path.parent, "trash", re.escape(path.name)):
        operations.remove_tree(left)


def sweep(directory: Path, names: str = ".+") -> None:
    """Remove what a killed writer of outputs left in `directory`, and restore what it had moved away. The caller holds
    the lock. `names`: a regular expression of the outputs, where others write there, too."""
    for path in leftovers(directory, "tmp", names) + leftovers(directory, "trash", names):
        operations.remove_tree(path)
    for path in leftovers(directory, "old", names):
        _settle(path, directory / path.name.removeprefix(".old-").rpartition("-")[0])


def sweep_abandoned(paths: Iterable[Path], *, seconds: float) -> None:
    """Remove those of `paths` that have not changed for `seconds`, and are no directory that a process holds."""
    for path in paths:
        with suppress(OSError):
            if time.time() - path.lstat().st_mtime < seconds:
                continue
            if path.is_dir() and not path.is_symlink():
                with locked_if_left(path) as left:
                    if left:
                        operations.remove_tree(path)
            else:
                operations.unlink(path)
