"""Signals as a flag that a loop polls, so that it ends at a safe point. Handlers do nothing but set it: whoever polls
says what there is to say."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

PERSONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal or connection was closed
# Batch systems announce the end of a job: Slurm by --signal=USR1@60, others by USR2, the kernel by XCPU where a limit
# of CPU time is reached, and then every second.
BATCH_SYSTEMS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
SIGNALS = PERSONS + BATCH_SYSTEMS
T = TypeVar("T")


class Stopped(Exception):
    """The exception by which the signal handler aborts work that is safe to discard."""


class Stop:
    """A flag that is true once a signal came; `exit_code` is what the shell expects then."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self.signal: int | None = None
        self.asked_by_person = False
        self.raises = False
        self._announce = announce
        self._announced = False

    def __call__(self) -> bool:
        """Return whether a signal came; announce it when it is seen for the first time."""
        if self.signal is None:
            return False
        if not self._announced:
            self._announced = True
            self._announce()
        return True

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or 0)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal raise Stopped within the block, which must change nothing that lasts, instead of waiting."""
        if self():
            raise Stopped
        self.raises = True
        try:
            yield
        finally:
            self.raises = False
            self()


@contextmanager
def handled(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handle` hear SIGNALS within the block, but for those that are ignored, as nohup ignores some."""
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signals(announce: Callable[[], None]) -> Iterator[Stop]:
    """Make signals set a flag within the block; `announce` is called when the flag is first seen.

    The second signal of those that a person sends ends the process at once.
    """
    stop = Stop(announce)

    def handle(number: int, _frame: FrameType | None) -> None:
        if number in PERSONS:
            if stop.asked_by_person:
                os._exit(128 + number)
            stop.asked_by_person = True
        if stop.signal is None:
            stop.signal = number
        if stop.raises:
            stop.raises = False
            raise Stopped

    with handled(handle):
        yield stop


def interruptible(work: Callable[[], T]) -> T:
    """Return what `work` returns, called in a thread of its own, so that a long call into foreign code does not hold up
    a signal. After one the thread goes on until the process ends, which must be soon.
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
    """Make SIGINT raise nothing within the block; the function tells whether one came. SIGTERM is as it was."""
    came = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)
