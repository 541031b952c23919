"""Score lines: a record for each, with log-probability, tokens and bits per byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.base.ready import Ready, always, blocks
from gptcli.data.jsonl import answered, read_records
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
            yield answered(record, _facts(found))


def _facts(found: TextScore) -> dict[str, Any]:
    """Return an empty line has no bits per byte."""
    return {
        "logprob": -found.nats,
        "tokens": found.tokens,
        "bytes": found.bytes,
        "bits_per_byte": found.bits_per_byte if found.bytes else None,
    }
