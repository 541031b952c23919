"""Signals as a flag that a loop polls, so that it ends at a safe point; a second signal ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal or connection was closed
T = TypeVar("T")


class Stopped(Exception):
    """A signal came while work was in hand that can be given up."""


class Stop:
    """True once a signal came; `exit_code` is what the shell expects then."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.raises = False

    def __call__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or 0)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, which must change nothing that lasts, a signal raises Stopped and does not wait."""
        if self():
            raise Stopped
        self.raises = True
        try:
            yield
        finally:
            self.raises = False


@contextmanager
def stop_on_signals(announce: Callable[[], None]) -> Iterator[Stop]:
    """Within the block the first signal sets the flag and calls `announce`; the second ends the process."""
    stop = Stop()

    def handle(number: int, _frame: FrameType | None) -> None:
        if stop.signal is not None:
            os._exit(128 + number)
        stop.signal = number
        announce()
        if stop.raises:
            raise Stopped

    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores some
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(work: Callable[[], T]) -> T:
    """What `work` gives, done in a thread of its own: a call that is long in foreign code does not hold up a signal.

    After one the thread goes on until the process ends, which must be soon.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def interrupt_as_flag() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT raises nothing; the function tells whether one came. SIGTERM is as it was."""
    came = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
