"""A corpus and a tokenizer -> the shards of a prepared directory, on all cores, going on where a killed run ended."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.data.corpus import Corpus, read_corpus, split_pieces
from gptcli.data.overlap import Overlap, find_overlap
from gptcli.data.shards import SPLITS, SplitIndex, SplitWriter, token_dtype, write_index
from gptcli.data.text import Findings, Piece, split_text
from gptcli.data.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 26
BATCH_CHARACTERS = 1 << 22  # encoded at once; with the batches under way this bounds memory
PIECE_CHARACTERS = 1 << 16  # the share of a core: enough of them keep all cores busy
JOURNAL = "journal.json"


def finish(partial: Path, output: Path) -> None:
    """Publish the prepared directory that was built in `partial`."""
    for leftover in (partial / JOURNAL, *(partial / "spool").glob("*")):
        fsio.remove_file(leftover)
    if (partial / "spool").is_dir():
        (partial / "spool").rmdir()
    fsio.publish(partial, output)


def encode_corpus(
    corpus: Corpus, tokenizer: Tokenizer, partial: Path, *, report: Report, shard_tokens: int = SHARD_TOKENS
) -> None:
    """Encode the corpus into `partial`, on all cores; go on from the journal that a killed run left there."""
    dtype = token_dtype(tokenizer.vocab_size)
    key = corpus.key(tokenizer.sha256, shard_tokens, BATCH_CHARACTERS)
    journal = _read_journal(partial, key)
    writers = {split: SplitWriter(partial, split, dtype, journal["splits"][split]) for split in SPLITS}
    done_batches, done_bytes = journal["batches"], 0
    found = Findings()
    batches = enumerate(_batches(read_corpus(corpus, found)))
    for _, batch in itertools.islice(batches, done_batches):
        done_bytes += sum(piece.raw_bytes for _, piece in batch)
    for number, (batch, encoded) in _encode_ahead(tokenizer, batches):
        for (split, piece), ids in zip(batch, encoded, strict=True):
            if piece.starts_document and tokenizer.end_of_text is not None:
                ids.insert(0, tokenizer.end_of_text)
            text_bytes = len(piece.text.encode())
            writers[split].append(ids, text_bytes=text_bytes, starts_document=piece.starts_document)
            done_bytes += piece.raw_bytes
        if sum(writer.waiting_tokens for writer in writers.values()) >= shard_tokens:
            _flush(partial, key, number + 1, writers)
        report.progress("encode", done_bytes, corpus.total_bytes, unit="B")
    for writer in writers.values():
        writer.flush()
    report.progress("encode", corpus.total_bytes, corpus.total_bytes, unit="B")
    if not writers["train"].index.tokens:
        raise DataError("no training text is left after the split; lower data.validation_fraction or give more text")
    found.tell(report, corpus.options)
    overlap = _overlap(corpus, report) if writers["validation"].index.tokens else None
    fsio.write_file(partial / "tokenizer.json", tokenizer.content)
    write_index(
        partial,
        vocab_size=tokenizer.vocab_size,
        splits={split: writer.index for split, writer in writers.items()},
        tokenizer_sha256=tokenizer.sha256,
        inputs=list(corpus.facts),
        left_out_rows=found.bad_rows,
        overlap=None if overlap is None else overlap.as_dict(),
    )


def _overlap(corpus: Corpus, report: Report) -> Overlap:
    """Return what of the held-out text is in the training text, too."""
    found = find_overlap(
        split_pieces(corpus, "validation"),
        split_pieces(corpus, "train"),
        lambda done: report.progress("compare with held-out text", done, corpus.total_bytes, unit="B"),
    )
    report.progress("compare with held-out text", corpus.total_bytes, corpus.total_bytes, unit="B")
    return found


def tell_overlap(index: dict[str, Any], report: Report) -> None:
    """Warn where the held-out text of a prepared directory is in its training text; one made earlier does not say."""
    if index.get("overlap") and (line := Overlap(**index["overlap"]).warning()):
        report.warning(line)


Labelled = tuple[str, Piece]


def _batches(pieces: Iterator[Labelled]) -> Iterator[list[Labelled]]:
    """Split pieces where they are long, and yield batches of about BATCH_CHARACTERS."""
    batch: list[Labelled] = []
    characters = 0
    for split, piece in pieces:
        raw_bytes = piece.raw_bytes
        for number, text in enumerate(split_text(piece.text, PIECE_CHARACTERS)):
            batch.append((split, Piece(text, piece.starts_document and number == 0, raw_bytes)))
            characters += len(text)
            raw_bytes = 0
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode_ahead(
    tokenizer: Tokenizer, batches: Iterator[tuple[int, list[Labelled]]]
) -> Iterator[tuple[int, tuple[list[Labelled], list[list[int]]]]]:
    """Yield the batches in order with their ids; the next batch is encoded while one is being written."""

    def encode(batch: list[Labelled]) -> list[list[int]]:
        return tokenizer.encode_batch([piece.text for _, piece in batch])

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: deque[tuple[int, list[Labelled], Future[list[list[int]]]]] = deque()
        for number, batch in batches:
            ahead.append((number, batch, pool.submit(encode, batch)))
            if len(ahead) > 1:
                first, pieces, future = ahead.popleft()
                yield first, (pieces, future.result())
        for first, pieces, future in ahead:
            yield first, (pieces, future.result())


def _read_journal(partial: Path, key: str) -> dict[str, Any]:
    """Return how far a killed run with the same content came; anything else that lies in `partial` is removed."""
    fsio.sweep(partial)
    path = partial / JOURNAL
    if path.exists():
        journal = fsio.read_json(path)
        if journal.get("key") == key:
            return {
                "batches": journal["batches"],
                "splits": {split: SplitIndex(**journal["splits"][split]) for split in SPLITS},
            }
    for file in partial.iterdir():
        if file.is_file() and file.name != fsio.LOCK:
            fsio.remove_file(file)
    return {"batches": 0, "splits": {split: SplitIndex() for split in SPLITS}}


def _flush(partial: Path, key: str, batches: int, writers: dict[str, SplitWriter]) -> None:
    for writer in writers.values():
        writer.flush()
    splits = {split: asdict(writer.index) for split, writer in writers.items()}
    fsio.write_json(partial / JOURNAL, {"key": key, "batches": batches, "splits": splits})
