"""Rows with named fields from JSONL, CSV and TSV files, each with its place FILE:LINE. Standard library only.

CSV and TSV have a header row that names the fields. CSV follows RFC 4180: a field in double quotes may hold commas,
newlines and doubled quotes. In TSV a double quote is a character like any other. All may be compressed with gzip.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.data.text import Source, TextOptions, find_sources, read_lines

T = TypeVar("T")
BadLines = Literal["error", "skip"]


class Row(NamedTuple):
    """One record of a file."""

    place: str  # FILE:LINE, safe to show
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """The text in a field; DataError where there is none."""
        if name not in self.fields:
            names = shown(", ".join(f"'{key}'" for key in self.fields)) or "no fields"
            raise DataError(f"{self.place}: no field '{shown(name)}'; it has {names}")
        value = self.fields[name]
        if not isinstance(value, str):
            raise DataError(f"{self.place}: field '{shown(name)}' must be text, got {shown(json.dumps(value), 40)}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{self.place}: field '{shown(name)}' has a lone surrogate, which is not text; mend or drop the row"
            ) from None
        return value


@dataclass(frozen=True)
class Rows(Generic[T]):
    """What was made of the rows of some files."""

    items: list[T]
    bad_lines: tuple[str, ...]  # what was wrong with the lines that were skipped


def load_rows(
    inputs: Sequence[str], parse: Callable[[Row], T], *, on_bad_line: BadLines, options: TextOptions | None = None
) -> Rows[T]:
    """`parse` of every row of the inputs, in order. A line that is no row, or that `parse` refuses with DataError,
    ends the reading with that error or is skipped; DataError where no row is left."""
    items: list[T] = []
    bad: list[str] = []
    for row in read_rows(inputs, options):
        try:
            if isinstance(row, DataError):
                raise row
            items.append(parse(row))
        except DataError as error:
            if on_bad_line == "error":
                raise
            bad += error.problems
    if not items:
        why = f"; {bad[0]}" if bad else ""
        raise DataError(f"{shown(', '.join(inputs))}: no rows{why}")
    return Rows(items, tuple(bad))


def read_rows(inputs: Sequence[str], options: TextOptions | None = None) -> Iterator[Row | DataError]:
    """The rows of files, directories, globs or `-`; for a line that is none, what is wrong with it."""
    options = options or TextOptions()
    for source in find_sources(inputs, options):
        lines = read_lines(source, options)
        match _format(source):
            case "jsonl":
                yield from _json_rows(lines, source.name)
            case "csv":
                yield from _separated_rows(lines, source.name, "excel", quoting=csv.QUOTE_MINIMAL)
            case "tsv":
                yield from _separated_rows(lines, source.name, "excel-tab", quoting=csv.QUOTE_NONE)


def _format(source: Source) -> str:
    suffix = Path(str(source.path).lower().removesuffix(".gz")).suffix
    if source.kind == "jsonl":
        return "jsonl"
    if suffix in (".csv", ".tsv"):
        return suffix[1:]
    raise DataError(f"{source.name}: rows are read from JSONL, CSV and TSV; name the file .jsonl, .csv or .tsv")


def _json_rows(lines: Iterable[str], name: str) -> Iterator[Row | DataError]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield DataError(f"{place}: not JSON (column {error.pos + 1}: {error.msg})")
            continue
        except (ValueError, RecursionError) as error:
            yield DataError(f"{place}: not JSON ({shown(str(error))})")
            continue
        if isinstance(record, dict):
            yield Row(place, record)
        else:
            yield DataError(f'{place}: not a JSON object; want {{"field": value, ...}}')


def _separated_rows(lines: Iterable[str], name: str, dialect: str, *, quoting: Any) -> Iterator[Row | DataError]:
    reader = csv.reader(iter(lines), dialect, quoting=quoting, strict=True)
    header = _next_record(reader, name)
    if header is None:
        return
    if isinstance(header, DataError):
        raise header
    _, names = header
    if "" in names or len(set(names)) < len(names):
        raise DataError(f"{name}:1: the header must name every field once, got {shown(', '.join(map(repr, names)))}")
    while (record := _next_record(reader, name)) is not None:
        if isinstance(record, DataError):
            yield record
            continue
        place, values = record
        if len(values) == len(names):
            yield Row(place, dict(zip(names, values, strict=True)))
        else:
            yield DataError(f"{place}: {len(values)} fields, want the {len(names)} of the header")


def _next_record(reader: Any, name: str) -> tuple[str, list[str]] | DataError | None:
    """The next record that is not blank with the place where it begins, what is wrong there, or None at the end."""
    while True:
        place = f"{name}:{reader.line_num + 1}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            return DataError(f"{place}: not a record ({error})")
        if values is None or values:
            return values and (place, values)
