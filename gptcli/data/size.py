"""The number of tokens of a run's data, as far as that can be said at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gptcli.base.errors import DataError, GptcliError
from gptcli.config.data import DataConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.blocks import PIECE_BYTES, Source, TextOptions, codec_name, raw_blocks
from gptcli.data.compression import decompressed
from gptcli.data.corpus import text_options
from gptcli.data.shards import is_prepared, read_index
from gptcli.data.text import decompressed_bytes, find_sources, read_pieces
from gptcli.data.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 1 << 17
SAMPLE_BYTES, SAMPLE_OUTPUT_BYTES = 2 << 20, 32 << 20  # read of a source to see what its bytes hold, and decompressed
SAMPLED_SOURCES = 8


class TokenCount(NamedTuple):
    """Training tokens, counted in a prepared directory, else estimated from the bytes of the files."""

    tokens: int
    estimated: bool


def training_tokens(data: DataConfig, tokenizer: Tokenizer | None, vocab_size: int) -> TokenCount | None:
    """Count the training tokens; None where the data are not there, or come from a stream that only training may read.

    Without a tokenizer, bytes per token are guessed from the size of the vocabulary.
    """
    if any(name == "-" or Path(name).is_fifo() for name in data.inputs):
        return None
    try:
        if all(is_prepared(Path(name)) for name in data.inputs):
            found = [read_index(Path(name))["splits"]["train"].tokens for name in data.inputs]
            return TokenCount(sum(found), estimated=False)
        options = text_options(data)
        sources = find_sources(data.inputs, options)
        text_bytes = estimate_text_bytes(sources, options)
        sample, documents = _beginning(sources[0], options)
    except (GptcliError, OSError):  # planning needs no data; training will say what is wrong with them
        return None
    per_token = english_bytes_per_token(vocab_size)
    if tokenizer is not None and sample:
        per_token = len(sample.encode()) / (len(tokenizer.encode(sample)) + documents)  # each ends in <|endoftext|>
    kept = 1.0 if data.validation else 1 - data.validation_fraction
    return TokenCount(round(text_bytes * kept / per_token), estimated=True)


def _beginning(source: Source, options: TextOptions) -> tuple[str, int]:
    """Return the first SAMPLE_CHARACTERS of a source's text, and the documents that begin in them."""
    text, documents = "", 0
    for piece in read_pieces(source, options):
        text += piece.text
        documents += piece.starts_document
        if len(text) >= SAMPLE_CHARACTERS:
            break
    return text[:SAMPLE_CHARACTERS], documents


def estimate_text_bytes(sources: Sequence[Source], options: TextOptions) -> int:
    """Return the bytes of text, as UTF-8, that files hold: decompressed, and without the syntax of JSONL.

    Exact for plain UTF-8 text, and for other files as far as SAMPLE_BYTES at their beginning reach; beyond, and for all
    but some of many such files, the share of text in what was read is taken for that of the rest.
    """
    tables = sum(decompressed_bytes(source, options) for source in sources if source.kind == "parquet")
    files = [source for source in sources if source.kind != "parquet"]
    sizes = {source: source.path.stat().st_size for source in files if source.path is not None}
    plain = [source for source in sizes if _is_plain(source, options)]
    others = [source for source in sizes if not _is_plain(source, options) and sizes[source]]
    sampled = others[:: -(-len(others) // SAMPLED_SOURCES)] if others else []
    shares = {source: _text_per_byte(source, options) for source in sampled}
    mean = sum(shares[source] * sizes[source] for source in sampled) / max(1, sum(sizes[source] for source in sampled))
    held = sum(shares.get(source, mean) * sizes[source] for source in others)
    return tables + sum(sizes[source] for source in plain) + round(held)


def _is_plain(source: Source, options: TextOptions) -> bool:
    return source.kind == "text" and not source.compressed and codec_name(options) == "utf-8" and not source.encoding


def _text_per_byte(source: Source, options: TextOptions) -> float:
    """Return the bytes of text for each byte of a file, of all or of its beginning."""
    text = content = 0
    for piece in read_pieces(source, options):
        text += len(piece.text.encode())
        content += piece.raw_bytes
        if content >= SAMPLE_BYTES:
            break
    return text / max(1, content) * (_decompressed_per_byte(source) if source.compressed else 1.0)


def _decompressed_per_byte(source: Source) -> float:
    blocks = itertools.islice(raw_blocks(source.path, source.name), 1 + SAMPLE_BYTES // PIECE_BYTES)
    read = content = 0

    def counted() -> Iterator[bytes]:
        nonlocal read
        for block in blocks:
            read += len(block)
            yield block

    assert source.compression is not None
    with suppress(DataError):  # the sample ends within the compressed data
        for block in decompressed(counted(), source.name, source.compression, PIECE_BYTES):
            content += len(block)
            if content >= SAMPLE_OUTPUT_BYTES:
                break
    return content / max(1, read)


def english_bytes_per_token(vocab_size: int) -> float:
    """Return the mean bytes of a token of a byte-level BPE on English: measured 1.9 at 512 tokens, 4.4 at 50257."""
    return max(1.0, 0.38 * math.log2(vocab_size) - 1.5)


def find_vocabulary(config: PretrainConfig) -> tuple[Tokenizer | None, int]:
    """Return the run's tokenizer, if it is there, and the rows of the model's embedding."""
    prepared = Path(config.data.inputs[0])
    path = prepared if is_prepared(prepared) else config.tokenizer.path
    tokenizer = None if path is None else Tokenizer.load(path).with_end_of_text()
    own = config.tokenizer.vocab_size if tokenizer is None else tokenizer.vocab_size
    return tokenizer, config.model.vocab_size or own
