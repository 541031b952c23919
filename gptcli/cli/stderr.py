"""Write to standard error without ever holding up the work or ending it.

A pipe that nobody reads, or a terminal stopped by Ctrl-S, takes no more text, and a training run that waited for it
could not be told to save. So a thread of its own writes; a writer waits for it for a moment, and what comes while it is
still stuck is dropped and counted.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from contextlib import suppress

PATIENCE_SECONDS = 1.0


class Stderr:
    """A text stream, as far as tqdm needs one, for which a closed reader or a full disk is no error."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._texts: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._dropped = 0

    def write(self, text: str) -> int:
        """Write text; return its length whether or not it was taken."""
        if sys.stderr is None:
            return len(text)
        if not self._idle.is_set():
            self._dropped += 1
            return len(text)
        if self._dropped:
            text = f"gptcli: {self._dropped} messages were lost while stderr took none\n{text}"
            self._dropped = 0
        content = text.encode(sys.stderr.encoding or "utf-8", "backslashreplace")
        if not self._has_thread():
            _write(content)
            return len(text)
        self._idle.clear()
        self._texts.put(content)
        self._idle.wait(PATIENCE_SECONDS)
        return len(text)

    def _has_thread(self) -> bool:
        """Start the thread at the first message. Return False where the machine gives no more threads."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="stderr", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def flush(self) -> None:
        """Do nothing: `write` has waited."""

    def isatty(self) -> bool:
        """Return whether a terminal shows the text."""
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        """Return the descriptor, from which tqdm learns the width of the terminal."""
        return sys.stderr.fileno()

    def _run(self) -> None:
        while True:
            _write(self._texts.get())
            self._idle.set()


def _write(content: bytes) -> None:
    """Write to the descriptor itself, so that no lock of a Python stream is held while it is stuck."""
    with suppress(OSError, ValueError, AttributeError):
        descriptor = sys.stderr.fileno()
        while content:
            content = content[os.write(descriptor, content) :]
