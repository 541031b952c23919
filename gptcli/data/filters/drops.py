"""A drop list and the shard that it was made for -> the documents that stay, without their cut lines and passages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.filters.documents import Document
from gptcli.data.filters.group import FORMAT
from gptcli.data.filters.sketch import text_hash
from gptcli.data.filters.words import words_of

Entry = dict[str, Any]
_BORDER = re.compile(r"\n+|(?<=[.!?])[\"'”’)\]]*\s+|(?<=[。！？])")


def apply_drops(documents: Iterable[Document], drops: Path) -> Iterator[Document]:
    """Yield the documents that stay, in order. DataError where they are not those that the list was made for."""
    header, entries = _read(drops)
    place = escape(str(drops))
    waiting = next(entries, None)
    number = -1
    for number, document in enumerate(documents):
        mine: list[Entry] = []
        while waiting is not None and waiting["document"] == number:
            mine.append(waiting)
            waiting = next(entries, None)
        if not mine:
            yield document
            continue
        if mine[0]["text_hash"] != text_hash(document.text).hex():
            raise DataError(f"{document.place}: not the text that {place} was made for; sign and group again")
        if not any(entry["action"] == "drop" for entry in mine):
            text = without(document.text, mine)
            if text.strip():
                yield document.with_text(text)
    if number + 1 != header["documents"]:
        what = f"made for {header['documents']:,} documents, and there are {number + 1:,}"
        raise DataError(f"{place}: {what}; name the inputs that were signed")


def drop_entries(drops: Path) -> Iterator[Entry]:
    """Yield what a drop list says, in order of the documents."""
    return _read(drops)[1]


def _read(path: Path) -> tuple[Entry, Iterator[Entry]]:
    def entries() -> Iterator[Entry]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                except ValueError:
                    entry = None
                if not isinstance(entry, dict) or not (
                    {"document", "action", "text_hash"} <= entry.keys() or number == 1
                ):
                    raise DataError(f"{escape(str(path))}:{number}: no entry of a drop list; the file is damaged")
                yield entry

    found = entries()
    header = next(found, {})
    if header.get("format") != FORMAT or not isinstance(header.get("documents"), int):
        raise DataError(f"{escape(str(path))}: not a drop list; gptcli corpus dedup --group makes them")
    return header, found


def without(text: str, cuts: Sequence[Entry]) -> str:
    """Return a text without its cut lines, and without the whole sentences of its cut passages."""
    stretches: list[tuple[int, int]] = []
    lines = {entry["line"] for entry in cuts if entry["reason"] == "line"}
    start = 0
    for number, line in enumerate(text.split("\n")):
        if number in lines:
            stretches.append((start, start + len(line) + 1))
        start += len(line) + 1
    passages = [entry["words"] for entry in cuts if entry["reason"] == "passage"]
    if passages:
        words = words_of([text])
        starts, ends = words.starts.tolist(), words.ends.tolist()
        stretches += [sentences(text, starts, ends, first, last) for first, last in passages]
    return without_stretches(text, stretches)


def sentences(text: str, starts: Sequence[int], ends: Sequence[int], first: int, last: int) -> tuple[int, int]:
    """Return the characters [start, end) of the whole sentences or lines among the words [first, last).

    Where these are less than half of the passage, as in text without punctuation, all of its words.
    """
    before = ends[first - 1] if first else 0
    after = starts[last] if last < len(starts) else len(text)
    borders = [match.end() for match in _BORDER.finditer(text, before, after)]
    borders = ([0] if not first else []) + borders + ([len(text)] if last >= len(starts) else [])
    start, end = (borders[0], borders[-1]) if borders else (0, 0)
    if end - start >= (ends[last - 1] - starts[first]) / 2:
        return start, end
    return starts[first], after


def without_stretches(text: str, stretches: Iterable[tuple[int, int]]) -> str:
    """Return a text without some stretches of characters, which may overlap."""
    parts, at = [], 0
    for start, end in sorted(stretches):
        parts.append(text[at : max(at, start)])
        at = max(at, end)
    return "".join(parts) + text[at:]
