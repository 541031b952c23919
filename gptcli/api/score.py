"""Lines -> a record a line with log-probability, tokens and bits per byte."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.base.ready import Ready, always, blocks
from gptcli.evaluate.perplexity import TextScore, score_documents

LINES_AT_ONCE = 64


def score(
    run: str | Path,
    lines: Iterable[bytes],
    *,
    ready: Ready = always,
    jsonl: bool = False,
    field: str = "text",
    **how: Unpack[DeviceOptions],
) -> Iterator[dict[str, Any]]:
    """Score each line by itself, in order; DataError names a line that is not UTF-8, or not a record with the field."""
    opened = open_model(run, **how)
    model, tokenizer, runtime = opened.model, opened.tokenizer, opened.runtime
    records = read_records(lines, jsonl=jsonl, field=field)
    for block in blocks(records, LINES_AT_ONCE, ready):
        ids = [tokenizer.encode(record[field]) for record in block]
        for record, found in zip(block, score_documents(model, tokenizer, ids, runtime), strict=True):
            yield {**record, **_facts(found)}


def _facts(found: TextScore) -> dict[str, Any]:
    """An empty line has no bits per byte."""
    return {
        "logprob": -found.nats,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "bits_per_byte": found.bits_per_byte if found.bytes else None,
    }


def read_records(lines: Iterable[bytes], *, jsonl: bool, field: str) -> Iterator[dict[str, Any]]:
    """Lines as records with the text in `field`; blank lines of JSONL are passed over."""
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            raise DataError(f"stdin:{number}: {byte} is not UTF-8; convert it, iconv -t utf-8") from None
        if not jsonl:
            yield {field: text}
        elif line.strip():
            yield parse_record(text, f"stdin:{number}", field)


def parse_record(line: str, place: str, field: str) -> dict[str, Any]:
    """A JSON object with text in `field`; DataError names the place."""
    record = parse_object(line, place)
    if field not in record:
        there = shown(", ".join(map(repr, record))) or "no fields"
        raise DataError(f"{place}: no field {shown(field)!r}; it has {there}")
    if not isinstance(record[field], str):
        raise DataError(f"{place}: field {shown(field)!r} must be text")
    try:
        record[field].encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: field {shown(field)!r} has a lone surrogate, which is not text") from None
    return record


def parse_object(line: str, place: str) -> dict[str, Any]:
    """A JSON object, a number that JSON cannot hold (NaN, 1e999) as null; DataError names the place."""
    try:
        record = json.loads(line, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({shown(str(error))})") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: not a JSON object")
    return record


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None
