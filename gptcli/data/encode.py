"""A corpus and a tokenizer -> the shards of a prepared directory, on all cores, going on where a killed run ended."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.data.corpus import Corpus, read_corpus, split_pieces
from gptcli.data.overlap import Overlap, find_overlap
from gptcli.data.shards import SPLITS, Encoded, SplitIndex, SplitWriter, token_dtype, write_index
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
    found = Findings()

    def pieces(done: int) -> Iterator[tuple[str, Encoded]]:
        yield from encoded(tokenizer, read_corpus(corpus, found), done, corpus.total_bytes, report)

    splits = write_shards(
        partial,
        corpus.key(tokenizer.sha256, shard_tokens, PIECE_CHARACTERS),
        lambda split, index: SplitWriter(partial, split, token_dtype(tokenizer.vocab_size), index),
        SPLITS,
        pieces,
        shard_tokens=shard_tokens,
    )
    found.tell(report, corpus.options)
    complete(partial, corpus, tokenizer, splits, found.bad_rows, report)


def complete(
    partial: Path,
    corpus: Corpus,
    tokenizer: Tokenizer,
    splits: dict[str, SplitIndex],
    left_out_rows: int,
    report: Report,
) -> None:
    """Add to the shards in `partial` what makes them a prepared directory."""
    if not splits["train"].tokens:
        raise DataError("no training text is left after the split; lower data.validation_fraction or give more text")
    overlap = _overlap(corpus, report) if splits["validation"].tokens else None
    fsio.write_file(partial / "tokenizer.json", tokenizer.content)
    write_index(
        partial,
        vocab_size=tokenizer.vocab_size,
        splits=splits,
        tokenizer_sha256=tokenizer.sha256,
        inputs=list(corpus.facts),
        left_out_rows=left_out_rows,
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


T = TypeVar("T")


def encoded(
    tokenizer: Tokenizer, pieces: Iterator[tuple[T, Piece]], done: int, total_bytes: int, report: Report
) -> Iterator[tuple[T, Encoded]]:
    """Yield pieces with their ids, after the first `done` of them; a label that each has is passed on.

    A document begins with the token that divides documents, if there is one.
    """
    done_bytes = sum(piece.raw_bytes for _, piece in itertools.islice(pieces, done))
    for batch, ids in _encode_ahead(tokenizer, _batches(pieces)):
        for (label, piece), found in zip(batch, ids, strict=True):
            if piece.starts_document and tokenizer.end_of_text is not None:
                found.insert(0, tokenizer.end_of_text)
            yield label, Encoded(found, len(piece.text.encode()), piece.starts_document, piece.raw_bytes)
            done_bytes += piece.raw_bytes
        report.progress("encode", done_bytes, total_bytes, unit="B")
    report.progress("encode", total_bytes, total_bytes, unit="B")


def _batches(pieces: Iterator[tuple[T, Piece]]) -> Iterator[list[tuple[T, Piece]]]:
    """Yield pieces in batches of about BATCH_CHARACTERS."""
    batch, characters = [], 0
    for label, piece in pieces:
        batch.append((label, piece))
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode_ahead(
    tokenizer: Tokenizer, batches: Iterator[list[tuple[T, Piece]]]
) -> Iterator[tuple[list[tuple[T, Piece]], list[list[int]]]]:
    """Yield the batches in order with their ids; the next batch is encoded while one is being written."""

    def encode(batch: list[tuple[T, Piece]]) -> list[list[int]]:
        parts = [list(split_text(piece.text, PIECE_CHARACTERS)) for _, piece in batch]
        ids = iter(tokenizer.encode_batch(list(itertools.chain.from_iterable(parts))))
        return [list(itertools.chain.from_iterable(itertools.islice(ids, len(part)))) for part in parts]

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: deque[tuple[list[tuple[T, Piece]], Future[list[list[int]]]]] = deque()
        for batch in batches:
            ahead.append((batch, pool.submit(encode, batch)))
            if len(ahead) > 1:
                pieces, future = ahead.popleft()
                yield pieces, future.result()
        for pieces, future in ahead:
            yield pieces, future.result()


def write_shards(
    partial: Path,
    key: str,
    writer: Callable[[str, SplitIndex], SplitWriter],
    names: Sequence[str],
    pieces: Callable[[int], Iterator[tuple[str, Encoded]]],
    *,
    shard_tokens: int,
) -> dict[str, SplitIndex]:
    """Write pieces, each to the writer of the name that comes with it, and return what each has written.

    Shards end after the piece with which so many tokens wait, so that they depend on the pieces alone. A journal says
    after how many pieces that was, under `key`, which stands for all that the pieces depend on: a run that was killed
    asks for the pieces that follow.
    """
    done, written = _read_journal(partial, key, names)
    writers = {name: writer(name, written[name]) for name in names}
    for number, (name, piece) in enumerate(pieces(done), done + 1):
        writers[name].add(piece)
        if sum(writer.waiting_tokens for writer in writers.values()) >= shard_tokens:
            for each in writers.values():
                each.flush()
            indexes = {name: asdict(each.index) for name, each in writers.items()}
            fsio.write_json(partial / JOURNAL, {"key": key, "pieces": number, "splits": indexes})
    for each in writers.values():
        each.flush()
    return {name: each.index for name, each in writers.items()}


def _read_journal(partial: Path, key: str, names: Sequence[str]) -> tuple[int, dict[str, SplitIndex]]:
    """Return how far a killed run with the same content came; anything else that lies in `partial` is removed."""
    fsio.sweep(partial)
    path = partial / JOURNAL
    if path.exists():
        journal = fsio.read_json(path)
        if journal.get("key") == key:
            return journal["pieces"], {name: SplitIndex(**journal["splits"][name]) for name in names}
    for file in partial.iterdir():
        if file.is_file() and file.name != fsio.LOCK:
            fsio.remove_file(file)
    return 0, {name: SplitIndex() for name in names}
