"""Drop documents, lines and passages that occurred before, in one go or in shards: signed, grouped, applied."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from gptcli.api.corpus.output import holds_others, output_file, write_documents, write_lines
from gptcli.api.corpus.reading import Reading
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.data.filters.documents import Document, source_documents
from gptcli.data.filters.drops import apply_drops, drop_entries
from gptcli.data.filters.group import Grouped, GroupOptions, group
from gptcli.data.filters.sketch import Sketch, SketchOptions, write_sketch
from gptcli.data.text import Source, file_sha256, find_sources

WORK_FILE = "work.json"  # in a directory of --work: whose it is


def sign(inputs: Sequence[str], output: Path, options: SketchOptions, reading: Reading, report: Report) -> int:
    """Write the sketch of one shard, a directory, and return the number of its documents."""
    documents = reading.documents(inputs)
    return write_sketch(documents, output, options, report, workers=reading.workers)


def group_sketches(
    sketches: Sequence[Path], output: Path, options: GroupOptions, report: Report, *, against: Sequence[Path] = ()
) -> Grouped:
    """Write a drop list for each sketch into a directory, and return what was found.

    Raises DataError for a sketch that is damaged.
    """
    for path in [*sketches, *against]:
        fsio.verify(path)
    return group(
        [Sketch(path) for path in sketches], output, options, report, against=[Sketch(path) for path in against]
    )


def apply(inputs: Sequence[str], drops: Path, output: Path | BinaryIO, reading: Reading) -> None:
    """Write the documents of one shard that its drop list leaves."""
    write_documents(apply_drops(reading.documents(inputs), drops), output)


def dedup(
    inputs: Sequence[str],
    output: Path | BinaryIO,
    sketching: SketchOptions,
    grouping: GroupOptions,
    reading: Reading,
    report: Report,
    *,
    against: Sequence[str] = (),
    dropped: Path | None = None,
    work: Path | None = None,
) -> Grouped:
    """Write the documents that stay, in order, and return what was found; into `dropped` goes what was not kept.

    Each input is a shard. Sketches are kept in `work` until the end, so that a command that was killed goes on with
    those that are whole; without it they go into a temporary directory.
    """
    with _work_directory(work) as directory:
        sources = [_spooled(source, directory, reading) for source in find_sources(inputs, reading.text)]
        references = find_sources(against, reading.text) if against else []
        sketches = _sketches(sources, "part", directory, sketching, reading, report)
        others = _sketches(references, "against", directory, sketching, reading, report)
        found = group(sketches, directory / "drops", grouping, report, against=others)
        lists = [directory / "drops" / f"{sketch.name}.jsonl" for sketch in sketches]
        if dropped is not None:
            with output_file(dropped) as file:
                write_lines(_dropped_lines(sources, lists), file)
        write_documents(_kept(sources, lists, reading), output)
    if work is not None:
        _remove(work)
    return found


def _remove(work: Path) -> None:
    """Remove a work directory; what says whose it is goes last, so that one half removed is known for what it is."""
    for path in sorted(work.iterdir(), key=lambda path: path.name == WORK_FILE):
        fsio.remove_tree(path)
    fsio.remove_tree(work)


def _kept(sources: Sequence[Source], lists: Sequence[Path], reading: Reading) -> Iterator[Document]:
    for source, drops in zip(sources, lists, strict=True):
        yield from apply_drops(source_documents(source, reading.text), drops)


def _dropped_lines(sources: Sequence[Source], lists: Sequence[Path]) -> Iterator[bytes]:
    for source, drops in zip(sources, lists, strict=True):
        for entry in drop_entries(drops):
            yield json.dumps({"source": source.name, **entry}, ensure_ascii=False).encode() + b"\n"


@contextmanager
def _work_directory(work: Path | None) -> Iterator[Path]:
    if work is None:
        with tempfile.TemporaryDirectory(prefix="gptcli-dedup-") as name:
            yield Path(name)
        return
    if work.exists() and not (work / WORK_FILE).is_file() and (work.is_file() or holds_others(work)):
        raise ConfigError(f"{escape(str(work))}: holds other files than gptcli makes there; name another --work")
    fsio.make_directory(work)
    fsio.write_json(work / WORK_FILE, {"of": "gptcli corpus dedup"})
    with fsio.locked(work):
        yield work


def _spooled(source: Source, directory: Path, reading: Reading) -> Source:
    """Return a source that can be read twice: a stream's documents are copied to a file."""
    if source.stream is None and source.path is not None:
        return source
    path = directory / "stream.jsonl"
    write_documents(source_documents(source, reading.text), path)
    if not path.stat().st_size:
        raise DataError(f"{source.name}: no documents; pipe some in")
    return Source(source.name, path, "jsonl", None, encoding="utf-8")


def _sketches(
    sources: Sequence[Source], kind: str, directory: Path, options: SketchOptions, reading: Reading, report: Report
) -> list[Sketch]:
    """Return the sketch of each source, made unless it is there from a run that was killed."""
    found = []
    for number, source in enumerate(sources):
        assert source.path is not None
        report.progress(f"sign {kind}", number, len(sources), source.name)
        path = directory / f"{kind}-{number:06d}"
        read = [asdict(reading.text), source.kind, source.name]
        note = json.dumps([file_sha256(source.path), read])
        if not _is_whole(path, options, note):
            documents = source_documents(source, reading.text)
            write_sketch(documents, path, options, report, workers=reading.workers, note=note)
        found.append(Sketch(path))
    report.progress(f"sign {kind}", len(sources), len(sources))
    return found


def _is_whole(path: Path, options: SketchOptions, note: str) -> bool:
    """Return whether a sketch is there, undamaged and of the same text."""
    try:
        fsio.verify(path)
        sketch = Sketch(path)
    except DataError:
        return False
    return sketch.options == options and sketch.note == note
