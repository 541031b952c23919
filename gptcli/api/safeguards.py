"""Flags of safeguards -> what the engine holds texts to."""

from __future__ import annotations

from typing import TypedDict, Unpack

from gptcli.data.tokenizer import Tokenizer
from gptcli.data.tokenizer_file import encoding_sha256
from gptcli.generate.safeguards import Safeguards
from gptcli.generate.watermark import check_tokenizer, read_key


class SafeguardOptions(TypedDict, total=False):
    """Files and switches, as the command line has them."""

    watermark: str | None
    require_watermark: bool


def make_safeguards(tokenizer: Tokenizer, **how: Unpack[SafeguardOptions]) -> Safeguards:
    """Read what the options name; ConfigError where it does not fit the tokenizer."""
    path, key = how.get("watermark"), None
    if path is not None:
        key = read_key(path)
        check_tokenizer(key, encoding_sha256(tokenizer.plain_content), path)
    return Safeguards(key, how.get("require_watermark", False))
