"""Rows with named fields from JSONL, JSON arrays, Parquet, CSV and TSV files, each with its place FILE:LINE.

CSV and TSV have a header row that names the fields. CSV follows RFC 4180: a field in double quotes may hold commas,
newlines and doubled quotes. In TSV a double quote is a character like any other. All may be compressed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.data import parquet
from gptcli.data.decode import decoded_blocks
from gptcli.data.jsonl import MAX_LINE_BYTES, array_elements, check_object, parse_json, text_of
from gptcli.data.kinds import has_suffix
from gptcli.data.tables import table_rows
from gptcli.data.text import Source, TextOptions, find_sources, read_lines

T = TypeVar("T")
BadLines = Literal["error", "skip"]
MOST_SAID = 3  # bad rows that a refusal names
FIELD = re.compile(r"\{(\w+)\}")  # of a row, in a template
_PARAGRAPH_END = re.compile(r"(\n[ \t]*\n\s*)")


class Row(NamedTuple):
    """One record of a file."""

    place: str  # FILE:LINE, safe to show
    fields: dict[str, Any]

    def text(self, name: str, *, advice: str = "") -> str:
        """Return the text in a field. DataError where there is none, `advice` after it."""
        return text_of(self.fields, name, self.place, advice=advice)

    def filled(self, template: str) -> str:
        """Return a template with the fields of this row in place of their names in braces.

        A paragraph of it whose fields are all empty (null, or white space) is left out, as Alpaca's `### Input:`.
        DataError where the row has not the field.
        """
        parts = _PARAGRAPH_END.split(template.replace("\\n", "\n"))
        kept = []
        for paragraph, end in zip(parts[::2], [*parts[1::2], ""], strict=True):
            names = FIELD.findall(paragraph)
            values = {name: "" if self.fields.get(name, "") is None else self.text(name) for name in names}
            if not names or any(value.strip() for value in values.values()):
                kept.append(FIELD.sub(lambda match, values=values: values[match[1]], paragraph) + end)
        return "".join(kept)


@dataclass(frozen=True)
class Rows(Generic[T]):
    """The items that were made of the rows of some files."""

    items: list[T]
    bad_lines: tuple[str, ...]  # what was wrong with the lines that were skipped


def load_rows(
    inputs: Sequence[str],
    parse: Callable[[Row], T],
    *,
    on_bad_line: BadLines,
    options: TextOptions | None = None,
    report: Report | None = None,
    advice: str = "mend or drop such rows",
) -> Rows[T]:
    """Return what `parse` makes of every row of the inputs, in order.

    A line that is no row, or that `parse` refuses with DataError, is skipped, or the rest is read to count such lines
    and DataError is raised that names the first ones, with `advice`. DataError where no row is left.
    """
    items: list[T] = []
    bad: list[str] = []
    rows = bad_rows = 0
    for row in read_rows(inputs, options, report):
        rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            items.append(parse(row))
        except DataError as error:
            bad_rows += 1
            bad += error.problems
    if bad and on_bad_line == "error":
        if bad_rows == 1:
            raise DataError(*bad)
        names = escape(", ".join(inputs))
        raise DataError(*bad[:MOST_SAID], f"{names}: {bad_rows:,} of {count(rows, 'row')} cannot be read; {advice}")
    if not items:
        why = f"; {bad[0]}" if bad else ""
        raise DataError(f"{escape(', '.join(inputs))}: no rows{why}")
    return Rows(items, tuple(bad))


def read_rows(
    inputs: Sequence[str], options: TextOptions | None = None, report: Report | None = None
) -> Iterator[Row | DataError]:
    """Yield the rows of files, directories, globs or `-`; for a line that is none, what is wrong with it."""
    options = options or TextOptions()
    for source in find_sources(inputs, options, report, rows=True):
        match source.kind:
            case "jsonl":
                yield from _json_rows(source, options)
            case "json":
                yield from _array_rows(source, options)
            case "parquet":
                assert source.path is not None
                yield from (Row(place, fields) for place, fields in parquet.rows(source.path, source.name))
            case "text":
                if not has_suffix(str(source.path), (".csv", ".tsv")):
                    raise DataError(
                        f"{source.name}: rows are read from JSON lines, JSON arrays, Parquet, CSV and TSV, and this is "
                        "none of the first three; name it .csv or .tsv if it is a table"
                    )
                for found in table_rows(source, options):
                    yield found if isinstance(found, DataError) else Row(*found)


def _json_rows(source: Source, options: TextOptions) -> Iterator[Row | DataError]:
    for number, line in enumerate(read_lines(source, options), 1):
        if line.strip():
            place = f"{source.name}:{number}"
            try:
                yield Row(place, check_object(parse_json(line, place), place))
            except DataError as error:
                yield error


def _array_rows(source: Source, options: TextOptions) -> Iterator[Row | DataError]:
    texts = (text for text, _ in decoded_blocks(source, options))
    for number, (line, text, value) in enumerate(array_elements(texts, source.name, MAX_LINE_BYTES), 1):
        if value is None and text.strip() in ("", "]", "[]"):  # after the last
            continue
        place = f"{source.name}:{line}: item {number}"
        try:
            yield Row(place, check_object(value, place))
        except DataError as error:
            yield error
