"""Encode text into token shards."""

from __future__ import annotations

import shutil
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
    if tokenizer.end_of_text is None:
        tokenizer = tokenizer.with_end_of_text()
        mark = tokenizer.decode(tokenizer.eos_ids or tokenizer.bos_ids)
        report.message(f"the tokenizer names no token between documents; {escape(mark)} is taken")
    partial = output.parent / f".partial-{output.name}"
    with fsio.locked(partial):
        _check_replaceable(output, force=force)  # again: another process may have made it meanwhile
        try:
            corpus = survey(data, partial / "spool", report, flags=True)
            encode_corpus(corpus, tokenizer, partial, report=report, shard_tokens=shard_tokens)
            finish(partial, output)
        except BaseException:
            if not (partial / JOURNAL).exists():  # nothing to go on with
                shutil.rmtree(partial, ignore_errors=True)
            raise
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
    if output.is_dir() and not is_prepared(output) and any(output.iterdir()):
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
