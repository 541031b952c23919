"""CSV and TSV as people's programs write them: the delimiter, the line ends and the header are looked at first."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.blocks import Source, TextOptions
from gptcli.data.decode import decoded_blocks
from gptcli.data.kinds import has_suffix
from gptcli.data.split import split_all_lines, split_lines
from gptcli.data.text import read_lines

DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_DECLARED = re.compile(r'"?sep=(.)"?\s*')  # a first line that spreadsheets write


def table_rows(source: Source, options: TextOptions) -> Iterator[tuple[str, dict[str, str]] | DataError]:
    """Yield (place, fields) of every row of a CSV or TSV file; for a line that is no row, what is wrong with it.

    The delimiter is the one that the header has most of: a comma, a semicolon, a tab or a bar. A column without a name,
    as pandas writes for its index, is no field. Space around names is not part of them. DataError where the header does
    not name every field once.
    """
    lines = read_lines(source, options, split_all_lines if _ends_in_returns(source, options) else split_lines)
    first = next(lines, None)
    if first is None:
        return
    is_tsv = has_suffix(str(source.path), (".tsv",))
    skipped = 0
    if declared := _DECLARED.fullmatch(first):
        first, skipped = next(lines, ""), 1
    delimiter = declared[1] if declared else _delimiter(first, "\t" if is_tsv else ",")
    quoting: Any = csv.QUOTE_NONE if is_tsv and delimiter == "\t" else csv.QUOTE_MINIMAL
    spaced = re.search(rf"{re.escape(delimiter)} ", first) is not None and not is_tsv  # `text, label`
    reader = csv.reader(
        chain([first], lines), delimiter=delimiter, quoting=quoting, skipinitialspace=spaced, strict=True
    )
    header = _next_record(reader, source.name, skipped)
    if header is None:
        return
    if isinstance(header, DataError):
        raise header
    names = [name.strip() for name in header[1]]
    named = [name for name in names if name]
    if not named or len(set(named)) < len(named):
        wrong = escape(", ".join(map(repr, names)))
        raise DataError(f"{source.name}:1: the header must name every field once, got {wrong}")
    while (record := _next_record(reader, source.name, skipped)) is not None:
        if isinstance(record, DataError):
            yield record
            continue
        place, values = record
        if len(values) == len(names):
            yield place, {name: value for name, value in zip(names, values, strict=True) if name}
        else:
            yield DataError(f"{place}: {len(values)} fields, want the {len(names)} of the header")


def _ends_in_returns(source: Source, options: TextOptions) -> bool:
    """Return whether lines end in a carriage return alone, as on a Mac of long ago; of a stream that is not asked."""
    if source.stream is not None:
        return False
    text, _ = next(decoded_blocks(source, options), ("", 0))
    return "\n" not in text and "\r" in text


def _delimiter(header: str, usual: str) -> str:
    """Return the delimiter that a header has most of, the usual one where it has none."""
    bare = _QUOTED.sub("", header)
    best = max(DELIMITERS, key=lambda delimiter: (bare.count(delimiter), delimiter == usual))
    return best if bare.count(best) else usual


def _next_record(reader: Any, name: str, skipped: int) -> tuple[str, list[str]] | DataError | None:
    """Return the next record that is not blank with the place where it begins, what is wrong there, or None at the
    end."""
    while True:
        place = f"{name}:{reader.line_num + 1 + skipped}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            return DataError(f"{place}: not a record ({error})")
        if values is None or values:
            return values and (place, values)
