"""Pieces of a corpus -> a tokenizer, with how well it does on text that it was not trained on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import amount, count
from gptcli.data.leaks import leaking_tokens
from gptcli.data.text import Piece, split_text
from gptcli.data.tokenizer import Tokenizer, learn_merges

LONG_WORD_COST, PROSE_WORD = 16, 6.5  # the latter: bytes of a word and its space, above which long words are looked for
LONG_WORDS = re.compile(rb"\S{24,}")
BLOCK_CHARACTERS = 1 << 14
HELD_OUT_EVERY = 20  # of the blocks, one is kept from training to measure on
HELD_OUT_BYTES = 1 << 22
LONG_TO_LEARN_BYTES = 1 << 20  # from so much text on it is worth a word that merges are learnt


@dataclass(frozen=True)
class TokenizerReport:
    """The facts that `gptcli train-tokenizer` prints."""

    vocab_size: int
    wanted_vocab_size: int
    read_bytes: int
    trained_bytes: int
    bytes_per_token: float  # on text that was not trained on, if `held_out_bytes` is not 0
    held_out_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        where = f"on {self.held_out_bytes:,} held-out bytes" if self.held_out_bytes else "on the training text"
        return [
            ("tokens", f"{self.vocab_size:,}"),
            ("bytes per token", f"{self.bytes_per_token:.3f} {where}"),
            ("trained on", f"{self.trained_bytes:,} of {self.read_bytes:,} bytes"),
        ]


def learn_tokenizer(
    pieces: Iterable[Piece],
    *,
    vocab_size: int,
    pattern: str,
    specials: Sequence[str] = (),
    max_bytes: int | None = None,
    report: Report | None = None,
) -> tuple[Tokenizer, TokenizerReport]:
    """Train on the pieces of a corpus in memory bounded by `max_bytes`, and measure on every twentieth block of it.

    The report is told when merges are learnt, which takes most of the time. DataError for a corpus without text.
    """
    held_out: list[str] = []
    read_bytes = trained_bytes = held_out_bytes = 0

    def training_blocks() -> Iterator[str]:
        nonlocal read_bytes, held_out_bytes
        for number, block in enumerate(blocks(pieces)):
            size = len(block.encode())
            read_bytes += size
            if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1:
                if held_out_bytes < HELD_OUT_BYTES:
                    held_out.append(block)
                    held_out_bytes += size
                continue
            yield block

    def counted(texts: Iterator[str]) -> Iterator[str]:
        nonlocal trained_bytes
        sample: list[str] = []
        for text in texts:
            trained_bytes += len(text.encode())
            if len(sample) < 64:
                sample.append(text)
            yield text
        if not any(text.strip() for text in sample):
            raise DataError("there is no text to learn from but white space; give more")
        if report is not None and trained_bytes >= LONG_TO_LEARN_BYTES:
            report.message(f"learning {vocab_size:,} tokens from {amount(trained_bytes, 'B')} of text")
        if not held_out:
            held_out.extend(sample)  # too little text to hold any out: measured on what was trained on

    texts = training_blocks()
    tokenizer = learn_merges(
        counted(texts if max_bytes is None else sample_evenly(texts, max_bytes)),
        vocab_size=vocab_size,
        pattern=pattern,
        specials=specials,
    )
    measured_bytes = sum(len(text.encode()) for text in held_out)
    _tell_leaks(tokenizer, report or Report())
    return tokenizer, TokenizerReport(
        vocab_size=tokenizer.vocab_size,
        wanted_vocab_size=vocab_size,
        read_bytes=read_bytes,
        trained_bytes=trained_bytes,
        bytes_per_token=measured_bytes / sum(map(len, tokenizer.encode_batch(held_out))),
        held_out_bytes=held_out_bytes,
    )


def _tell_leaks(tokenizer: Tokenizer, report: Report) -> None:
    """Warn of tokens that give numbers and addresses of the text away, whatever a model does."""
    leaks = leaking_tokens(tokenizer)
    if leaks:
        some = ", ".join(escape(repr(token)) for token in leaks[:3])
        report.warning(
            f"{count(len(leaks), 'token')} with five digits in a row or an address, such as {some}, can be read in the "
            "tokenizer itself; first mask and deduplicate the text (gptcli corpus filter --pii mask, corpus dedup), "
            "or cut numbers by --pattern llama3"
        )


def blocks(pieces: Iterable[Piece]) -> Iterator[str]:
    """Yield text in blocks of at most BLOCK_CHARACTERS: the unit of sampling, of holding out and of the cores' work."""
    for piece in pieces:
        if piece.text:
            yield from split_text(piece.text, BLOCK_CHARACTERS)


def learning_bytes(text: str) -> int:
    """Return the bytes of a text, those in words of LONG_WORD bytes or more counted LONG_WORD_COST-fold.

    The trainer keeps every distinct word with the places of its pairs, some 75 bytes a byte. Words of prose repeat;
    Chinese, Thai, DNA or base64, which no spaces divide, is one distinct word after another.
    """
    content = text.encode()
    if len(content) < PROSE_WORD * (content.count(b" ") + content.count(b"\n") + 1):
        return len(content)
    long = sum(len(word) for word in LONG_WORDS.findall(content))
    return len(content) + (LONG_WORD_COST - 1) * long


def sample_evenly(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield texts spread evenly over the input, max_bytes of `learning_bytes` at most and half of that or more, in
    memory of that size.

    The length of the input need not be known: when the texts kept pass the limit, every second one is dropped and
    from then on half as many are taken.
    """
    kept: list[str] = []
    kept_bytes, stride = 0, 1
    for number, text in enumerate(texts):
        if number % stride:
            continue
        kept.append(text)
        kept_bytes += learning_bytes(text)
        while kept_bytes > max_bytes and len(kept) > 1:
            kept, stride = kept[::2], stride * 2
            kept_bytes = sum(map(learning_bytes, kept))
        if kept_bytes > max_bytes:  # one text, too long by itself
            share = len(kept[0].encode()) * max_bytes // kept_bytes
            kept = [kept[0].encode()[:share].decode(errors="ignore")]
            kept_bytes = learning_bytes(kept[0])
    yield from kept
