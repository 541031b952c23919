"""Read the lines of a stream as they come, and tell whether the next one is there."""

from __future__ import annotations

import codecs
import fcntl
import os
import select
import stat
import sys
import termios
from collections import deque
from collections.abc import Iterator

from gptcli.base.errors import GptcliError

READ_BYTES = 1 << 16


class Lines:
    """The lines of a file descriptor, each with its newline.

    The byte order mark that some programs write before UTF-8 is dropped. Without `blank`, a blank line comes as a
    newline alone, since the reader does nothing with it. Raises GptcliError where reading fails.
    """

    def __init__(self, descriptor: int, *, blank: bool = True) -> None:
        self.descriptor, self.blank, self.ended = descriptor, blank, False
        self.whole: deque[bytes | int] = deque()  # a number stands for so many blank lines
        self.there = 0  # lines among them that are more than blank, or all
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
        if isinstance(line, int):
            if line > 1:
                self.whole.appendleft(line - 1)
            return b"\n"
        self.there -= 1
        return line

    def ready(self) -> bool:
        """Return whether a whole line is there, or the end. What has come is read, but not all that may yet come."""
        if not (self.there or self.ended) and _readable(self.descriptor, 0.0):
            self._read()
        return self.there > 0 or self.ended

    def _read(self) -> None:
        try:
            content = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:  # the other end of the pipe made it so
            _readable(self.descriptor, None)
            return
        except OSError as error:
            raise GptcliError(f"stdin: {error.strerror}") from None
        *whole, rest = content.split(b"\n")
        for line in whole:
            self._add(b"".join((*self.parts, line, b"\n")))
            self.parts.clear()
        if rest:
            self.parts.append(rest)
        self.ended = not content
        if self.ended and self.parts:
            self._add(b"".join(self.parts))
            self.parts.clear()

    def _add(self, line: bytes) -> None:
        if self.first:
            line, self.first = line.removeprefix(codecs.BOM_UTF8), False
        if self.blank or line.strip():
            self.whole.append(line)
            self.there += 1
        elif self.whole and isinstance(last := self.whole[-1], int):
            self.whole[-1] = last + 1
        else:
            self.whole.append(1)


def _readable(descriptor: int, timeout: float | None) -> bool:
    """Return whether reading returns at once; True where the system cannot say."""
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    except OSError:
        return True


def waiting_bytes(descriptor: int) -> int:
    """Return how many bytes of a pipe or file can be read at once, 0 where it is neither."""
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return max(0, status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))
        if not stat.S_ISFIFO(status.st_mode):
            return 0
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4), sys.byteorder)
    except OSError:
        return 0
