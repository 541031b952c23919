"""Text that may hold anything, made safe to show on one line of a terminal. Standard library only."""

import re
from itertools import accumulate

# C0, DEL and C1 controls move the cursor or start escape sequences, line separators break the line, bidirectional
# controls reorder what a person reads, and surrogates (bytes of a file name that are not UTF-8) cannot be encoded.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escaped(match: re.Match[str]) -> str:
    if match[0] in _NAMED:
        return _NAMED[match[0]]
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escape(text: str, limit: int = 120) -> str:
    """Return the text with unsafe characters as visible escapes, in at most `limit` characters, the last one an
    ellipsis where something was cut."""
    parts = [_UNSAFE.sub(_escaped, character) for character in text[: limit + 1]]
    ends = list(accumulate(map(len, parts)))
    if not ends or ends[-1] <= limit:
        return "".join(parts)
    return "".join(part for part, end in zip(parts, ends, strict=True) if end < limit) + "…"


def escape_lines(text: str) -> str:
    """Return the text with unsafe characters as visible escapes, newlines and tabs kept: fit for a terminal."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped(match), text)
