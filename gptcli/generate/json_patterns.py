"""Patterns of JSON numbers between bounds, and of strings that have a format."""

from __future__ import annotations

from collections.abc import Iterator

LARGEST = 10**15 - 1  # a double holds every whole number up to it
INTEGER = r"-?(0|[1-9]\d{0,14})"
NUMBER = INTEGER + r"(\.\d{1,15})?([eE][+-]?\d{1,2})?"

_DATE, _TIME = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])", r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?"
_ZONE = r"(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
FORMATS = {
    "date": _DATE,
    "time": _TIME + _ZONE,
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "uuid": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}


def integers(low: int, high: int) -> str:
    """Return the pattern of the whole numbers low..high, written without leading zeros."""
    parts = list(_digits(max(low, 0), high)) if high >= 0 else []
    if low < 0:
        parts += [f"-{digits}" for digits in _digits(max(1, -high), -low)]
    return "|".join(parts)


def decimals(low: int, high: int, *, above_low: bool, below_high: bool) -> str:
    """Return the pattern of decimals low..high with up to six places; `above_low` and `below_high` leave the bounds
    themselves out."""
    parts: list[str] = []
    if high >= 0:
        parts += _positive(max(low, 0), high, above_low and low >= 0, below_high)
    if low < 0:
        parts += [f"-({part})" for part in _positive(max(-high, 0), -low, below_high or high >= 0, above_low)]
    return "|".join(parts)


def _positive(low: int, high: int, above_low: bool, below_high: bool) -> Iterator[str]:
    if above_low and low < high:
        yield rf"{low}\.\d{{0,5}}[1-9]"
    for digits in _digits(low + above_low, high - 1):
        yield rf"{digits}(\.\d{{1,6}})?"
    if not below_high and not (above_low and low == high):
        yield rf"{high}(\.0{{1,6}})?"


def _digits(low: int, high: int) -> Iterator[str]:
    """Yield patterns that match the whole numbers low..high, from 0 on, between them."""
    for length in range(len(str(low)), len(str(max(high, 0))) + 1):
        least, most = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        if least <= most:
            yield from _same_length(str(least), str(most))


def _same_length(low: str, high: str) -> Iterator[str]:
    """Cut a range of numbers of one length where digits after the first may be any."""
    if not low:
        yield ""
    elif low[0] == high[0]:
        yield from (low[0] + rest for rest in _same_length(low[1:], high[1:]))
    else:
        first, last, places = int(low[0]), int(high[0]), len(low) - 1
        if low[1:] != "0" * places:
            yield from (low[0] + rest for rest in _same_length(low[1:], "9" * places))
            first += 1
        if high[1:] != "9" * places:
            yield from (high[0] + rest for rest in _same_length("0" * places, high[1:]))
            last -= 1
        if first <= last:
            yield f"[{first}-{last}]" + (rf"\d{{{places}}}" if places else "")
