"""Encode text into token shards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import RefusedError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.data import DataConfig
from gptcli.data.corpus import survey
from gptcli.data.encode import JOURNAL, SHARD_TOKENS, encode_corpus, finish, tell_overlap
from gptcli.data.merge_parts import Merge, read_parts
from gptcli.data.parts import encode_part, is_made, is_part, survey_part
from gptcli.data.shards import SPLITS, SplitIndex, is_prepared, read_index
from gptcli.data.tokenizer import Tokenizer


def prepare(
    data: DataConfig,
    tokenizer: Tokenizer,
    output: Path,
    *,
    report: Report,
    force: bool = False,
    shard_tokens: int = SHARD_TOKENS,
) -> dict[str, Any]:
    """Write the shards of `data` to the directory `output`; returns its index.

    A run that was killed goes on after its last whole shard when it is started again with the same content.
    """
    _check_replaceable(output, force=force)
    tokenizer = _dividing(tokenizer, report)
    with _made_aside(output, force=force) as partial:
        corpus = survey(data, partial / "spool", report, flags=True)
        encode_corpus(corpus, tokenizer, partial, report=report, shard_tokens=shard_tokens)
        finish(partial, output)
    return _told(output, data, report)


def prepare_part(
    data: DataConfig,
    tokenizer: Tokenizer,
    output: Path,
    number: int,
    parts: int,
    *,
    report: Report,
    force: bool = False,
    shard_tokens: int = SHARD_TOKENS,
) -> None:
    """Make of `data` part `number` of `parts`, counted from 1, for merge_parts.

    Does nothing where it is there already, made of the same content; goes on as `prepare` does.
    """
    tokenizer = _dividing(tokenizer, report)
    part = survey_part(data, tokenizer, number, parts, report)
    if is_made(output, part) and not force:
        report.message(f"{escape(str(output))}: is there, made of the same inputs")
        return
    with _made_aside(output, force=force) as partial:
        encode_part(part, tokenizer, partial, report=report, shard_tokens=shard_tokens)
        finish(partial, output)


def merge_parts(
    parts: Sequence[Path], output: Path, *, report: Report, force: bool = False, shard_tokens: int = SHARD_TOKENS
) -> dict[str, Any]:
    """Join all parts of a corpus, in any order, to what `prepare` makes of it in one process; returns its index.

    Goes on as `prepare` does. DataError names what is missing, doubled, damaged or no part of this corpus.
    """
    _check_replaceable(output, force=force)
    merge = Merge(read_parts(parts, report))
    with _made_aside(output, force=force) as partial:
        merge.encode(partial, report=report, shard_tokens=shard_tokens)
        finish(partial, output)
    return _told(output, merge.data, report)


def _dividing(tokenizer: Tokenizer, report: Report) -> Tokenizer:
    """Return the tokenizer with a token between documents."""
    if tokenizer.end_of_text is not None:
        return tokenizer
    tokenizer = tokenizer.with_end_of_text()
    mark = tokenizer.decode(tokenizer.eos_ids or tokenizer.bos_ids)
    report.message(f"the tokenizer names no token between documents; {escape(mark)} is taken")
    return tokenizer


@contextmanager
def _made_aside(output: Path, *, force: bool) -> Iterator[Path]:
    """Hold the directory beside `output` in which it is made, and which a killed run leaves to go on with."""
    _check_replaceable(output, force=force)
    partial = output.parent / f".partial-{output.name}"
    with fsio.locked(partial):
        _check_replaceable(output, force=force)  # again: another process may have made it meanwhile
        try:
            yield partial
        except BaseException:
            if not (partial / JOURNAL).exists():  # nothing to go on with
                shutil.rmtree(partial, ignore_errors=True)
            raise


def _told(output: Path, data: DataConfig, report: Report) -> dict[str, Any]:
    index = read_index(output)
    tell_overlap(index, report)
    _tell_split(data, index["splits"], report)
    return index


def _tell_split(data: DataConfig, splits: dict[str, SplitIndex], report: Report) -> None:
    """Warn where something was to be held out and nothing is."""
    if splits["validation"].tokens or not (data.validation or data.validation_fraction):
        return
    if data.validation:
        report.warning("nothing is held out: the validation inputs hold no text")
    elif data.validation_split == "document":
        documents = count(splits["train"].documents, "document")
        report.warning(
            f"nothing is held out: of {documents} none was drawn at {data.validation_fraction:g}; divide the "
            "text by --separator, raise --validation-fraction, or take --validation-split tail"
        )
    else:
        report.warning("nothing is held out: the text is too short; raise --validation-fraction or pass --validation")


def _check_replaceable(output: Path, *, force: bool) -> None:
    fsio.check_replaceable(output, force=force)
    if output.is_dir() and not (is_prepared(output) or is_part(output)) and any(output.iterdir()):
        raise RefusedError(f"{escape(str(output))}: holds other files than prepared ones; name another output")


def index_document(index: dict[str, Any]) -> dict[str, Any]:
    """Return an index of read_index as plain JSON."""
    return {**index, "splits": {split: asdict(index["splits"][split]) for split in SPLITS}}


def facts(index: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was prepared, for a person."""
    return [
        (
            split,
            f"{count(found.tokens, 'token')} of {count(found.bytes, 'byte')} in {count(found.documents, 'document')}",
        )
        for split in SPLITS
        for found in [index["splits"][split]]
    ]
