"""The secrets that a vocabulary itself gives away: tokens that hold a number of five digits or more, or an address."""

from __future__ import annotations

import re

from gptcli.data.tokenizer import Tokenizer

LONG_NUMBER = re.compile(rb"\d{5}")
ADDRESS = re.compile(rb"\w@|@\w")


def leaking_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the ordinary tokens with five digits in a row, or an @ beside a letter, in the order of their ids.

    Merges learn what is repeated: whoever has the tokenizer.json can read them.
    """
    special = set(tokenizer.specials.values())
    return [
        content.decode(errors="replace")
        for index, content in enumerate(tokenizer.token_bytes)
        if index not in special and (LONG_NUMBER.search(content) or ADDRESS.search(content))
    ]
