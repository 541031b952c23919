"""Flags of safeguards -> what the engine holds texts to."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict, Unpack

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.filters.pii import find_pii
from gptcli.data.grams import training_runs
from gptcli.data.shards import read_index
from gptcli.data.tokenizer import Tokenizer
from gptcli.data.tokenizer_file import encoding_sha256
from gptcli.generate.blocking import Blocked
from gptcli.generate.safeguards import Safeguards
from gptcli.generate.watermark import check_tokenizer, read_key

BLOCK_LENGTH = 25  # tokens in a row


class SafeguardOptions(TypedDict, total=False):
    """Files and switches, as the command line has them."""

    watermark: str | None
    require_watermark: bool
    mask_pii: bool
    block_list: str | None
    block_training: str | None
    block_length: int


def make_safeguards(tokenizer: Tokenizer, **how: Unpack[SafeguardOptions]) -> Safeguards:
    """Read what the options name; ConfigError where it does not fit the tokenizer."""
    path, key = how.get("watermark"), None
    if path is not None:
        key = read_key(path)
        check_tokenizer(key, encoding_sha256(tokenizer.plain_content), path)
    if mask := how.get("mask_pii", False):
        find_pii("")  # ConfigError where its library is not installed
    return Safeguards(key, how.get("require_watermark", False), _blocked(tokenizer, how), mask)


def _blocked(tokenizer: Tokenizer, how: SafeguardOptions) -> Blocked | None:
    """Return the phrases of a file, a line each, and the runs of a prepared directory; None without either."""
    path, prepared = how.get("block_list"), how.get("block_training")
    if path is None and prepared is None:
        return None
    phrases: tuple[str, ...] = ()
    if path is not None:
        try:
            lines = Path(path).read_text("utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise DataError(f"{escape(path)}: not UTF-8; convert it, iconv -t utf-8") from None
        phrases = tuple(line.strip("\n\r") for line in lines if line.strip())
        if not phrases:
            raise DataError(f"{escape(path)}: holds no phrase; write one a line")
    if prepared is None:
        return Blocked(phrases)
    index = read_index(Path(prepared))
    if max(split.max_id for split in index["splits"].values()) >= tokenizer.vocab_size:
        raise DataError(f"{escape(prepared)}: prepared with another tokenizer than the model's")
    length = how.get("block_length", BLOCK_LENGTH)
    return Blocked(phrases, length, training_runs(Path(prepared), length))
