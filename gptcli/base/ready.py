"""Iterators whose next item may not be there yet, and work in blocks of those that are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
Ready = Callable[[], bool]  # whether the next item of an iterator is there, or its end, so that nobody waits for it


def always() -> bool:
    """Return True: for items that are there at once."""
    return True


def blocks(items: Iterator[T], size: int, ready: Ready) -> Iterator[list[T]]:
    """Yield lists of 1 to `size` items: what is ready when the consumer asks for the next list.

    Where an item raises, the items before it are yielded first.
    """
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
