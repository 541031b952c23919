"""Lines of a stream as they come, for those who can do something else until the next is there."""

from __future__ import annotations

import codecs
import itertools
import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
Ready = Callable[[], bool]  # whether the next item of an iterator is there, or its end, so that nobody waits for it

READ_BYTES = 1 << 16


class Lines:
    """The lines of a file descriptor, each with its newline, the first without the byte order mark that some programs
    put before UTF-8. `blank`: whether whoever reads them makes something of a blank line."""

    def __init__(self, descriptor: int, *, blank: bool = True) -> None:
        self.descriptor, self.blank, self.ended = descriptor, blank, False
        self.whole: deque[bytes] = deque()
        self.parts: list[bytes] = []  # of the line after those
        self.first = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self.whole:
            if self.ended:
                raise StopIteration
            self._read()
        line = self.whole.popleft()
        if self.first:
            line, self.first = line.removeprefix(codecs.BOM_UTF8), False
        return line

    def ready(self) -> bool:
        """Whether a whole line is there, or the end."""
        while not (there := self.ended or any(self.blank or line.strip() for line in self.whole)):
            if not _readable(self.descriptor, 0.0):
                break
            self._read()
        return there

    def _read(self) -> None:
        try:
            content = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:  # the other end of the pipe made it so
            _readable(self.descriptor, None)
            return
        *whole, rest = content.split(b"\n")
        for line in whole:
            self.whole.append(b"".join((*self.parts, line, b"\n")))
            self.parts.clear()
        if rest:
            self.parts.append(rest)
        self.ended = not content
        if self.ended and self.parts:
            self.whole.append(b"".join(self.parts))
            self.parts.clear()


def _readable(descriptor: int, timeout: float | None) -> bool:
    """Whether reading returns at once; True where the system cannot say, as Windows of pipes."""
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    except OSError:
        return True


def always() -> bool:
    """Ready, for items that nobody has to wait for."""
    return True


def blocks(items: Iterator[T], size: int, ready: Ready) -> Iterator[list[T]]:
    """Lists of up to `size` items: what is there by the time that the list before has been dealt with, at least one."""
    for first in items:
        yield [first, *itertools.islice(_while_ready(items, ready), size - 1)]


def _while_ready(items: Iterator[T], ready: Ready) -> Iterator[T]:
    while ready():
        try:
            yield next(items)
        except StopIteration:
            return
