"""Iterators whose next item may not be there yet, and work in blocks of those that are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
Ready = Callable[[], bool]  # whether the next item of an iterator is there, or its end, so that nobody waits for it


def always() -> bool:
    """Ready, for items that nobody has to wait for."""
    return True


def blocks(items: Iterator[T], size: int, ready: Ready) -> Iterator[list[T]]:
    """Lists of up to `size` items: what is there by the time that the list before has been dealt with, at least one.
    What went before an item that cannot be had is dealt with first."""
    while True:
        block: list[T] = []
        problem: Exception | None = None
        try:
            while len(block) < size and (not block or ready()):
                block.append(next(items))
        except StopIteration:
            if not block:
                return
        except Exception as error:  # raised below
            problem = error
        if block:
            yield block
        if problem is not None:
            raise problem
