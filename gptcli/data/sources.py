"""Inputs named by the user -> sources, their first bytes checked. Standard library only."""

import difflib
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.data.blocks import HEAD_BYTES, PIECE_BYTES, Source, TextOptions, codec_name, peek, raw_blocks, unreadable
from gptcli.data.compression import MAGIC_BYTES, compression_of, decompressed
from gptcli.data.directories import files_below, nothing_below
from gptcli.data.jsonl import MAX_LINE_BYTES
from gptcli.data.kinds import MARKUP_SUFFIXES, check_head, has_field, has_suffix, is_parquet, kind_of, looks_like_json


def find_sources(
    inputs: Sequence[str], options: TextOptions, report: Report | None = None, *, rows: bool = False
) -> list[Source]:
    """Return the files and streams that the inputs stand for, in order, each real file once.

    An input is a file, a directory (all text files below, sorted, hidden ones skipped), a glob pattern (the files it
    matches, sorted) or `-`. The first bytes of each are checked. `report` is told what a directory holds and is not
    read, and what markup is read as text. `rows`: for records with named fields, tables among them, and not for text.

    Raises one error with every problem found, of the kind of the first: ConfigError for a name, GptcliError for a file
    that cannot be read, DataError for its content.
    """
    codec_name(options)
    if not inputs:
        raise ConfigError("no input; name a file, or - for standard input")
    if inputs.count("-") > 1:
        raise ConfigError("-: standard input can be read only once; name it once")
    sources: dict[str, Source] = {}
    notes: list[str] = []
    markup: list[str] = []
    found_wrong: list[GptcliError] = []
    for given in inputs:
        try:
            below = None
            paths: Sequence[Path | None] = [None]
            if given != "-" and _is_directory(given):
                below = files_below(given, rows=rows)
                paths = list(below.paths)
            elif given != "-":
                paths = _matching_files(given)
        except GptcliError as error:
            found_wrong.append(error)
            continue
        for path in paths:
            real = "-" if path is None else os.path.realpath(path)
            try:
                if real not in sources:
                    source, head = _inspect(path, options, rows=rows)
                    if below is not None and path is not None and _is_no_record_file(path, source, head, options, rows):
                        below.paths.remove(path)
                        below.leave_out(path)
                        continue
                    sources[real] = source
                    if source.kind == "text" and not rows and _is_markup(source, head, options):
                        markup.append(source.name)
            except GptcliError as error:
                found_wrong.append(error)
        if below is not None and not below.paths:
            found_wrong.append(nothing_below(below, rows=rows))
        elif below is not None and (note := below.note()):
            notes.append(note)
    if found_wrong:
        raise type(found_wrong[0])(*dict.fromkeys(problem for error in found_wrong for problem in error.problems))
    for line in (*notes, *_markup_notes(markup)):
        if report is not None:
            report.message(line)
    return list(sources.values())


def _is_markup(source: Source, head: bytes, options: TextOptions) -> bool:
    """Return whether a text is more than that by its name, or by how it begins."""
    named = source.path is not None and has_suffix(source.path.name, MARKUP_SUFFIXES)
    return named or looks_like_json(head, options)


def _markup_notes(names: Sequence[str]) -> Iterator[str]:
    if names:
        others = f" and {count(len(names) - 1, 'other file')}" if len(names) > 1 else ""
        yield (
            f"{names[0]}{others}: read as plain text, markup included; "
            "to train on one field of each record, write JSONL"
        )


def _is_no_record_file(path: Path, source: Source, head: bytes, options: TextOptions, rows: bool) -> bool:
    """Return whether a .json file that nobody named holds no records, as a configuration beside the text does."""
    if not has_suffix(path.name, (".json",)):
        return False
    return source.kind == "text" or not (rows or has_field(head, source.kind, options))


def _is_directory(given: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(given).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(escape(given), error) from None
    except ValueError:  # a NUL, or a surrogate that stands for no byte
        raise ConfigError(f"{escape(given)}: no such file") from None


def _matching_files(pattern: str) -> list[Path]:
    """Return the file of this name or else the files, not directories, that it matches as a glob pattern, sorted."""
    if os.path.exists(pattern):
        return [Path(pattern)]
    if any(character in pattern for character in "*?["):
        if found := [Path(name) for name in glob.glob(pattern, recursive=True) if not os.path.isdir(name)]:
            return sorted(found)
        raise ConfigError(f"{escape(pattern)}: no file matches")
    if os.path.islink(pattern):
        raise ConfigError(f"{escape(pattern)}: link to a missing file, '{escape(os.readlink(pattern))}'")
    directory, name = os.path.split(pattern)
    try:
        near = difflib.get_close_matches(name, os.listdir(directory or "."), n=1)
    except OSError:
        near = []
    hint = f"; did you mean '{escape(os.path.join(directory, near[0]))}'?" if near else ""
    raise ConfigError(f"{escape(pattern) or repr(pattern)}: no such file{hint}")


def _inspect(path: Path | None, options: TextOptions, *, rows: bool) -> tuple[Source, bytes]:
    """Return the source at a path and its first bytes, checked; a stream stays open, and keeps what was looked at."""
    name = "stdin" if path is None else escape(str(path))
    is_file = path is not None and os.path.isfile(path)
    opened = raw_blocks(path, name)
    head, blocks = peek(opened, lambda head: len(head) >= MAGIC_BYTES)
    compression = compression_of(head)
    content = blocks if compression is None else decompressed(blocks, name, compression, PIECE_BYTES)
    wanted, kind = HEAD_BYTES, None
    while kind is None:
        head, content = peek(content, lambda head, wanted=wanted: len(head) >= wanted)  # type: ignore[misc]
        if wanted == HEAD_BYTES and not is_parquet(head):
            check_head(head, name, options)
        whole = len(head) < wanted or len(head) > MAX_LINE_BYTES
        kind = kind_of(name, head, options, whole=whole, rows=rows, stream=not is_file)
        wanted = 2 * len(head)
    if kind == "parquet" and (compression is not None or not is_file):
        raise DataError(
            f"{name}: is a Parquet file, which is read from its end; save it to a file, not compressed again"
        )
    if is_file:
        opened.close()
        return Source(name, path, kind, compression), head
    if not head:
        raise DataError(f"{name}: no input; name files or pipe text in")
    return Source(name, path, kind, compression, [content]), head
