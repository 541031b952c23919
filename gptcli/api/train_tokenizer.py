"""Train a tokenizer.json on text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from gptcli.base import fsio
from gptcli.base.report import Report
from gptcli.data.blocks import Reading
from gptcli.data.learn_tokenizer import TokenizerReport, learn_tokenizer
from gptcli.data.text import Findings, Piece, TextOptions, decompressed_bytes, find_sources, read_pieces
from gptcli.data.tokenizer import check_vocabulary


def train_tokenizer(
    inputs: Sequence[str],
    output: Path,
    *,
    vocab_size: int,
    pattern: str = "gpt2",
    specials: Sequence[str] = (),
    max_bytes: int | None = None,
    force: bool = False,
    report: Report,
    **reading: Unpack[Reading],
) -> TokenizerReport:
    """Train a tokenizer on the inputs, which may be streams, and write it to `output`."""
    fsio.check_writable(output, force=force)
    check_vocabulary(vocab_size, specials)
    options = TextOptions(**reading)
    sources = find_sources(inputs, options, report)
    fsio.check_apart(output, (source.path for source in sources))
    sizes = [None if source.stream is not None else decompressed_bytes(source, options) for source in sources]
    total = None if None in sizes else sum(size for size in sizes if size is not None)

    found = Findings()

    def pieces() -> Iterator[Piece]:
        done = 0
        for source in sources:
            for piece in read_pieces(source, options, found):
                done += piece.raw_bytes
                report.progress("read", done, total, unit="B")
                yield piece

    tokenizer, facts = learn_tokenizer(
        pieces(), vocab_size=vocab_size, pattern=pattern, specials=specials, max_bytes=max_bytes, report=report
    )
    found.tell(report, options)
    fsio.write_file(output, tokenizer.content)
    if facts.vocab_size < vocab_size:
        report.warning(
            f"the corpus gives {facts.vocab_size} of the {vocab_size} tokens wanted; give more text for more"
        )
    return facts
