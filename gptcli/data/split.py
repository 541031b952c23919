"""Text cut into pieces, lines or documents, in bounded memory. Standard library only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

from gptcli.data.blocks import PIECE_BYTES
from gptcli.data.jsonl import MAX_LINE_BYTES

# Begins with the space, for the search to run at the speed of memchr; the class holds a few numerals beside letters.
_WORD_START = re.compile(r" (?<=\S )(?=[^\W\d_])")
_SPACE, _REST = re.compile(r"\s+"), re.compile(r"\S+")
HELD_BACK = 4096  # characters of a long document that are not cut off yet: a separator may have begun in them


def split_text(text: str, limit: int, *, anywhere: bool = True) -> Iterator[str]:
    """Split a text into pieces of at most `limit` characters that make it up again; at least one piece, for "" too.

    A cut goes just before a single space between a non-whitespace character and a letter, where there is one in the
    first `limit` characters: there the split patterns of GPT-2, GPT-4 (cl100k), Llama 3 and Qwen 2 always begin a new
    word, and look no further ahead, so that byte-level BPE gives the pieces the ids it gives the whole. Where there is
    none (a megabyte of one word, of digits, of Chinese) the cut is hard: the text is the same, but the ids around the
    cut may differ. With `anywhere` false there are no hard cuts: a piece goes on to the next such place, however far.
    """
    start = searched = 0
    while len(text) - searched > limit:
        cut = _last_word_start(text, searched + 1, searched + limit)
        searched = cut if cut > searched else searched + limit
        if cut == searched or anywhere:
            yield text[start:searched]
            start = searched
    yield text[start:]


def _last_word_start(text: str, start: int, end: int) -> int:
    """Return the last index in [start, end) of a single space between a non-whitespace character and a letter, or
    -1."""
    width = 1 << 10
    while start < end:  # backwards in windows that grow: mostly the first one has a word, a table of digits has none
        low = max(start, end - width)
        spaces = [match.start() for match in _WORD_START.finditer(text, low, end + 1)]
        if found := [space for space in spaces if text[space + 1].isalpha()]:
            return found[-1]
        end, width = low, width * 4
    return -1


def parts(blocks: Iterable[tuple[str, int]], cut: Callable[[str], Iterable[str]]) -> Iterator[tuple[str, int]]:
    """Yield the text of all blocks as `cut` divides it, each part with the bytes it took, the last part "" if need be.

    What `cut` leaves as its last part is put before the next block; a line of JSONL that has grown beyond
    MAX_LINE_BYTES without an end is given out as it is, for the reader to refuse.
    """
    rest, taken_bytes, read_bytes = "", 0, 0
    for text, block_bytes in blocks:
        end = -len(rest)  # of a part, in characters from the start of this block
        *whole, rest = cut(rest + text)
        for part in whole:
            end += len(part)
            part_bytes = max(0, read_bytes + block_bytes * end // len(text) - taken_bytes)
            yield part, part_bytes
            taken_bytes += part_bytes
        read_bytes += block_bytes
        if len(rest) > PIECE_BYTES and read_bytes - taken_bytes > MAX_LINE_BYTES:
            yield rest, read_bytes - taken_bytes
            rest, taken_bytes = "", read_bytes
    yield rest, read_bytes - taken_bytes


def split_lines(text: str) -> list[str]:
    """Return the lines with their newline; what follows the last newline comes last, "" if nothing."""
    *lines, rest = text.split("\n")
    return [*(line + "\n" for line in lines), rest]


def split_all_lines(text: str) -> list[str]:
    """Cut into lines as split_lines does, where a carriage return ends a line, too."""
    return split_lines(text.replace("\r\n", "\n").replace("\r", "\n"))


def separator_pattern(separator: str) -> re.Pattern[str]:
    """Return what divides a text into documents: `line`, `blank` (blank lines), or a text with the newline after it."""
    match separator:
        case "line":
            return re.compile(r"\r?\n")
        case "blank":
            return re.compile(r"\r?\n(?:[ \t]*\r?\n)+")
    literal = separator.replace("\\n", "\n").replace("\\t", "\t")
    return re.compile(re.escape(literal) + (r"(?:\r?\n)?" if not literal.endswith("\n") else ""))


def documents(blocks: Iterable[tuple[str, int]], separator: str) -> Iterator[tuple[str, bool, int]]:
    """Yield (text, whether it starts a document, bytes) of a text that a separator divides, in order.

    A document without anything but white space has no text.
    """
    pattern = separator_pattern(separator)
    at_end = re.compile(f"(?:{pattern.pattern})\\Z")

    def cut(text: str) -> list[str]:
        start, found = 0, []
        for match in pattern.finditer(text):
            if match.end() == len(text):  # it may go on
                break
            found.append(text[start : match.end()])
            start = match.end()
        rest = text[start:]
        if len(rest) > 2 * PIECE_BYTES + HELD_BACK:
            *pieces, last = split_text(rest[:-HELD_BACK], PIECE_BYTES)
            found += pieces
            rest = last + rest[-HELD_BACK:]
        return [*found, rest]

    starts = True
    for part, part_bytes in parts(blocks, cut):
        end = at_end.search(part, max(0, len(part) - HELD_BACK))
        text = part[: end.start()] if end else part
        if starts and end and not text.strip():
            text = ""
        pieces = split_text(text, PIECE_BYTES)
        for index, piece in enumerate(pieces):
            yield piece, starts and index == 0, 0 if index else part_bytes
        starts = end is not None or (starts and not text)


def cut_runs(text: str, longest: int) -> list[str]:
    """Return the text, cut within runs of more than `longest` characters that are all white space, or all not.

    Merging takes more than linear time in the length of a word. Llama 3's own tokenizer cuts there, too.
    """
    cuts, end = [0], 0
    for place in range(longest, len(text), longest):  # a longer run holds one of these places
        if place < end:
            continue
        kind = _SPACE if text[place].isspace() else _REST
        after, before = kind.match(text, place), kind.match(text[place - longest : place][::-1])
        end = after.end() if after else place
        start = place - (before.end() if before else 0)
        cuts += range(start + longest, end, longest)
    return [text[start:end] for start, end in itertools.pairwise([*cuts, len(text)])]
