"""The outputs of documents: a file that appears whole, or a stream that takes them as they come."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from gptcli.base import fsio
from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.data.filters.documents import Document

WRITE_BYTES = 1 << 18


@contextmanager
def output_file(output: Path | BinaryIO) -> Iterator[BinaryIO]:
    """Open an output: a path (.gz compresses; whole or not at all), or a stream that is open already."""
    if not isinstance(output, Path):
        yield output
        return
    with fsio.replacing(output) as file:
        if output.name.endswith(".gz"):
            with gzip.GzipFile(
                "", "wb", 6, file, mtime=0
            ) as packed:  # no time, so that the same text has the same bytes
                yield cast(BinaryIO, packed)
        else:
            yield file


def write_lines(lines: Iterable[bytes], file: BinaryIO) -> None:
    """Write lines in blocks."""
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= WRITE_BYTES:
            file.write(b"".join(block))
            block, size = [], 0
    file.write(b"".join(block))


def write_documents(documents: Iterable[Document], output: Path | BinaryIO) -> None:
    """Write documents as JSONL."""
    with output_file(output) as file:
        write_lines((document.line() for document in documents), file)


def check_outputs(inputs: Iterable[str], outputs: Iterable[Path | BinaryIO | None], *, force: bool) -> None:
    """Raise RefusedError, before any work, where an output exists without `force` or is an input."""
    paths = [output for output in outputs if isinstance(output, Path)]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"{escape(str(paths[0]))}: named for two outputs; name another file for one of them")
    for path in paths:
        if path.is_dir():
            raise ConfigError(f"{escape(str(path))}: is a directory, and the output a file; name a file")
        fsio.check_writable(path, force=force)
        fsio.check_apart(path, [Path(given) for given in inputs if given != "-" and Path(given).exists()])


def holds_others(directory: Path) -> bool:
    """Return whether a directory holds more than what a killed writer may have left in it."""
    left = {*fsio.leftovers(directory, "tmp"), *fsio.leftovers(directory, "trash"), directory / fsio.LOCK}
    return any(path not in left for path in directory.iterdir())
