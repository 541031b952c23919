"""Suggestions of what a person meant by a name that is not there. Standard library only."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from gptcli.base.escape import escape


def closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the word that is most like another, None where none is alike enough."""
    return next(iter(difflib.get_close_matches(word, list(words), 1, cutoff)), None)


def nearest_key(dotted: str, keys: Iterable[str]) -> str | None:
    """Return the key that was meant: the same name in another section, else a similar one here, else one there."""
    prefix, name = dotted[: dotted.rfind(".") + 1], dotted[dotted.rfind(".") + 1 :]
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(key[key.rfind(".") + 1 :], []).append(key)
    if name not in by_name:
        if sibling := closest(name, [near for near, places in by_name.items() if prefix + near in places]):
            return prefix + sibling
        name = closest(name, by_name, 0.75) or ""
    return closest(dotted, by_name.get(name, []), 0.0)


def nearest_file(path: Path) -> str | None:
    """Return a file beside where `path` would be whose name is like its."""
    try:
        near = closest(path.name, sorted(os.listdir(path.parent)))
    except OSError:
        return None
    return str(path.parent / near) if near else None


def did_you_mean(near: str | None) -> str:
    """Return `; did you mean 'NEAR'?`, empty for None."""
    return f"; did you mean '{escape(near, 1000)}'?" if near else ""
