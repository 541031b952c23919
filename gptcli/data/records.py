"""The texts of a source's records: a JSON line, an element of a JSON array, a row of a Parquet file each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.units import count
from gptcli.data import parquet
from gptcli.data.blocks import Source, TextOptions
from gptcli.data.decode import decoded_blocks
from gptcli.data.jsonl import MAX_LINE_BYTES, WHITE_SPACE, array_elements, check_object, clean_text, parse_json, text_of
from gptcli.data.split import parts, split_lines

MOST_SAID = 3  # bad rows that a refusal names
READ_ON_BYTES = 1 << 28  # past the first bad row of a file, to count the others

Record = tuple[str | DataError, int]  # the text, or why there is none, and the bytes of the source that it took


def record_texts(source: Source, options: TextOptions) -> Iterator[Record]:
    """Yield the text of every record, in order; "" for a blank line. DataError where there is no going on."""
    match source.kind:
        case "json":
            return _array_texts(decoded_blocks(source, options), source.name, options)
        case "parquet":
            assert source.path is not None
            return parquet.texts(source.path, source.name, options)
    return _line_texts(decoded_blocks(source, options), source.name, options)


def _line_texts(blocks: Iterable[tuple[str, int]], name: str, options: TextOptions) -> Iterator[Record]:
    for number, (line, line_bytes) in enumerate(parts(blocks, split_lines), start=1):
        if line_bytes > MAX_LINE_BYTES:
            raise DataError(f"{name}:{number}: line is longer than {MAX_LINE_BYTES >> 20} MiB; split the record")
        line = line.rstrip(WHITE_SPACE)
        try:
            yield (_text(parse_json(line, f"{name}:{number}"), f"{name}:{number}", options) if line else ""), line_bytes
        except DataError as error:
            yield error, line_bytes


def _array_texts(blocks: Iterable[tuple[str, int]], name: str, options: TextOptions) -> Iterator[Record]:
    read_bytes = read_characters = given_bytes = 0

    def texts() -> Iterator[str]:
        nonlocal read_bytes, read_characters
        for text, block_bytes in blocks:
            read_bytes += block_bytes
            read_characters += len(text)
            yield text

    most_characters = MAX_LINE_BYTES
    waiting: tuple[str | DataError, int] | None = None  # the last one takes what was rounded off
    for number, (line, text, value) in enumerate(array_elements(texts(), name, most_characters), start=1):
        if waiting is not None:
            yield waiting
            given_bytes += waiting[1]
        place = f"{name}:{line}: item {number}"
        part_bytes = min(len(text) * read_bytes // max(1, read_characters), read_bytes - given_bytes)
        try:
            found: str | DataError = "" if value is None and not text.strip() else _text(value, place, options)
        except DataError as error:
            found = error
        waiting = found, part_bytes
    if waiting is not None:
        yield waiting[0], read_bytes - given_bytes


def _text(value: object, place: str, options: TextOptions) -> str:
    """Return the text of a record; a string in an array is its own."""
    mend = f"pass {options.setting('errors', 'replace')}, or mend or drop the record"
    if isinstance(value, str) and ": item " in place:
        return clean_text(value, place, errors=options.errors, mend=mend)
    record = check_object(value, place, options.field)
    advice = f"; name it, {options.setting('field', 'NAME')}"
    return text_of(record, options.field, place, errors=options.errors, advice=advice, mend=mend)


def refusal(first: DataError, before: int, others: Iterable[Record], source: Source, options: TextOptions) -> DataError:
    """Return what to say of a bad row: it and the next ones, and how many there are.

    `before`: rows that were read, this one among them. Reads on in `others`, for READ_ON_BYTES of a file, not in a
    stream, which may never end.
    """
    said, bad, rows, left_bytes = list(first.problems), 1, before, READ_ON_BYTES if source.stream is None else 0
    whole = True
    if left_bytes:
        for text, record_bytes in others:
            rows += text != ""
            if isinstance(text, DataError):
                bad += 1
                said += text.problems if bad <= MOST_SAID else ()
            left_bytes -= record_bytes
            if left_bytes <= 0:
                whole = False
                break
    elif source.stream is not None:
        whole = False
    of = count(rows, "row") if whole else f"the first {count(rows, 'row')}"
    if bad == 1:
        *before_last, last = said
        leaves = options.setting("on_bad_row", "skip")
        return DataError(*before_last, f"{last} (1 of {of}; {leaves} leaves it out)")
    skip = options.setting("on_bad_row", "skip")
    return DataError(*said, f"{source.name}: {bad:,} of {of} cannot be read; mend or drop such rows, or {skip}")


def all_bad(first: str, rows: int, source: Source) -> DataError:
    """Return what to say where no row of a source can be read."""
    return DataError(f"{source.name}: none of {count(rows, 'row')} can be read; the first: {escape(first, 400)}")
