"""Items in groups of a size."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield items in order, `size` at a time and fewer at the end."""
    waiting = iter(items)
    while group := list(itertools.islice(waiting, size)):
        yield group
