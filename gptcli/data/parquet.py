"""Parquet files: the texts of a column, or whole rows. Reads with pyarrow, of the extra `corpus`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.blocks import TextOptions
from gptcli.data.compression import extra

BATCH_ROWS = 1024


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    pyarrow, reader = extra("pyarrow", "a Parquet file"), extra("pyarrow.parquet", "a Parquet file")
    try:
        with reader.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: Parquet data is damaged ({escape(str(error))}); copy the file again") from None


def _columns(path: Path, name: str, options: TextOptions) -> Iterator[Any]:
    """Yield the text column in batches, as bytes."""
    pyarrow = extra("pyarrow", "a Parquet file")
    with _opened(path, name) as file:
        schema = file.schema_arrow
        if options.field not in schema.names:
            names = escape(", ".join(f"'{column}'" for column in schema.names)) or "no columns"
            advice = f"name it, {options.setting('field', 'NAME')}"
            raise DataError(f"{name}: no column '{escape(options.field)}'; it has {names}; {advice}")
        column = schema.field(options.field).type
        column = column.value_type if pyarrow.types.is_dictionary(column) else column
        if not (pyarrow.types.is_string(column) or pyarrow.types.is_large_string(column)):
            raise DataError(f"{name}: column '{escape(options.field)}' must be text, got {escape(str(column), 40)}")
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[options.field]):
            found = batch.column(0)
            found = found.dictionary_decode() if pyarrow.types.is_dictionary(found.type) else found
            yield found.cast(pyarrow.large_binary())


def texts(path: Path, name: str, options: TextOptions) -> Iterator[tuple[str | DataError, int]]:
    """Yield the text of every row in the column `options.field`, or what is wrong with it, and its bytes."""
    number = 0
    for column in _columns(path, name, options):
        for content in column.to_pylist():
            number += 1
            place = f"{name}: row {number}: column '{escape(options.field)}'"
            if content is None:
                yield DataError(f"{place} must be text, got null"), 0
                continue
            try:
                yield content.decode("utf-8", options.errors), len(content)
            except UnicodeDecodeError as error:
                yield DataError(f"{place}: byte 0x{content[error.start]:02x} is not UTF-8"), len(content)


def text_bytes(path: Path, name: str, options: TextOptions) -> int:
    """Return the bytes of the texts in the column `options.field`."""
    compute = extra("pyarrow.compute", "a Parquet file")
    return sum(compute.sum(compute.binary_length(column)).as_py() or 0 for column in _columns(path, name, options))


def rows(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, fields) of every row."""
    with _opened(path, name) as file:
        number = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for fields in batch.to_pylist():
                number += 1
                yield f"{name}: row {number}", fields
