"""Numbers for a person: three digits and a prefix. Standard library only."""

from __future__ import annotations

import re

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def amount(number: float, unit: str = "") -> str:
    """Return a number with its unit in powers of 1000 and three digits: 1.234e9 and FLOP/s give `1.23 GFLOP/s`."""
    power = 0
    while abs(number) >= 999.5 and power < len(PREFIXES) - 1:
        number /= 1000
        power += 1
    digits = f"{number:.3g}"
    return f"{digits} {PREFIXES[power]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Return seconds in the units that a person would use: `250 ms`, `12.3 s`, `2 h 5 min`, `3.1 days`, `2.4 years`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    days = seconds / 86400
    return f"{days:,.3g} days" if days < 730 else f"{days / 365.25:,.0f} years"


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural: `1 thread`, `2 threads`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Parse a duration such as 90, 90s, 5m or 1.5h into seconds. Raises ValueError for anything else and for zero."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is not a duration; write 90s, 5m or 1.5h")
    return float(match[1]) * UNITS[match[2] or "s"]
