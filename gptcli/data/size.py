"""How many tokens a run's data has, as far as that can be said at once."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import NamedTuple

from gptcli.base.errors import GptcliError
from gptcli.config.data import DataConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.shards import is_prepared, read_index
from gptcli.data.text import TextOptions, find_sources, read_pieces
from gptcli.data.tokenizer import Tokenizer

SAMPLE_CHARACTERS = 1 << 17


class TokenCount(NamedTuple):
    """Training tokens, counted in a prepared directory, else estimated from the bytes of the files."""

    tokens: int
    estimated: bool


def training_tokens(data: DataConfig, tokenizer: Tokenizer | None, vocab_size: int) -> TokenCount | None:
    """None where the data are not there, or come from a stream that only training itself may read.

    Without a tokenizer, bytes per token are guessed from the size of the vocabulary.
    """
    if any(name == "-" or Path(name).is_fifo() for name in data.train):
        return None
    try:
        if is_prepared(Path(data.train[0])):
            return TokenCount(read_index(Path(data.train[0]))["splits"]["train"].tokens, estimated=False)
        options = TextOptions(field=data.field, encoding=data.encoding, errors=data.errors)
        sources = find_sources(data.train, options)
        text_bytes = sum(source.path.stat().st_size for source in sources if source.path is not None)
        sample = "".join(piece.text for piece in itertools.islice(read_pieces(sources[0], options), 64))
    except (GptcliError, OSError):  # planning needs no data; training will say what is wrong with them
        return None
    sample = sample[:SAMPLE_CHARACTERS]
    per_token = english_bytes_per_token(vocab_size)
    if tokenizer is not None and sample:
        per_token = len(sample.encode()) / max(1, len(tokenizer.encode(sample)))
    kept = 1.0 if data.validation else 1 - data.validation_fraction
    return TokenCount(round(text_bytes * kept / per_token), estimated=True)


def english_bytes_per_token(vocab_size: int) -> float:
    """Of a byte-level BPE on English, from measurements: 1.9 at 512 tokens, 3.1 at 4096, 4.4 at 50257."""
    return max(1.0, 0.38 * math.log2(vocab_size) - 1.5)


def find_vocabulary(config: PretrainConfig) -> tuple[Tokenizer | None, int]:
    """The run's tokenizer, if it is there, and the rows of the model's embedding."""
    prepared = Path(config.data.train[0])
    path = prepared if is_prepared(prepared) else config.tokenizer.path
    tokenizer = None if path is None else Tokenizer.load(path)
    own = config.tokenizer.vocab_size if tokenizer is None else tokenizer.vocab_size
    return tokenizer, config.model.vocab_size or own
