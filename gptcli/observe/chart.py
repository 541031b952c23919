"""Curves in characters: a canvas of Braille, two dots wide and four high a character. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gptcli.base.units import amount
from gptcli.observe.curves import Curve

Segment = tuple[str, str]  # text and its style, a colour or empty

COLOURS = ("cyan", "magenta", "yellow", "green", "red", "blue")
# Bit of a Braille character for each dot, by row and column (Unicode 17.0, section 21.1).
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
LABEL_WIDTH = 10
MIN_WIDTH, MIN_HEIGHT = 20, 4  # of the canvas, in characters


def draw(
    curves: Sequence[Curve], *, title: str, x_name: str, width: int, height: int, colours: bool
) -> list[list[Segment]]:
    """Return lines of at most `width` characters, `height` in all, each as segments of text and colour.

    Without colours, several curves are told apart by letters.
    """
    columns = max(MIN_WIDTH, width - LABEL_WIDTH - 2)
    rows = max(MIN_HEIGHT, height - 2 - len(curves))
    (left, right), (low, high) = (_span([point[i] for curve in curves for point in curve.points]) for i in (0, 1))
    cells = [[(0, -1)] * columns for _ in range(rows)]  # dots, and the last curve that set one
    for number, curve in enumerate(curves):
        dots = [
            (round((x - left) / (right - left) * (2 * columns - 1)), round((high - y) / (high - low) * (4 * rows - 1)))
            for x, y in curve.points
        ]
        for start, end in zip(dots, dots[1:] or dots, strict=False):
            for x, y in _line(start, end):
                cells[y // 4][x // 2] = (cells[y // 4][x // 2][0] | DOTS[y % 4][x % 2], number)
    lettered = len(curves) > 1 and not colours
    labels = {0: high, rows // 2: high - (high - low) * (rows // 2) / (rows - 1), rows - 1: low}
    lines: list[list[Segment]] = [[(title, "bold")]]
    for row, line in enumerate(cells):
        label = _label(labels[row]) if row in labels else ""
        lines.append([(f"{label:>{LABEL_WIDTH}} ┤", ""), *(_cell(dots, curve, lettered) for dots, curve in line)])
    ends = _label(left), f"{_label(right)} {x_name}"
    lines.append([(" " * (LABEL_WIDTH + 2) + ends[0] + ends[1].rjust(columns - len(ends[0])), "")])
    for number, curve in enumerate(curves):
        mark = chr(ord("a") + number % 26) if lettered else "━"
        last = f"  {_label(curve.points[-1][1])} at {_label(curve.points[-1][0])}"
        lines.append([(f"{mark} ", COLOURS[number % len(COLOURS)]), (curve.name + last, "")])
    return lines


def _cell(dots: int, curve: int, lettered: bool) -> Segment:
    if not dots:
        return " ", ""
    return (chr(ord("a") + curve % 26) if lettered else chr(0x2800 + dots)), COLOURS[curve % len(COLOURS)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest value, widened where they are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the dots from one to another, both included."""
    (x, y), (to_x, to_y) = start, end
    count = max(abs(to_x - x), abs(to_y - y), 1)
    return [(x + round((to_x - x) * i / count), y + round((to_y - y) * i / count)) for i in range(count + 1)]


def _label(value: float) -> str:
    if value == 0 or math.isclose(value, 0, abs_tol=1e-12):
        return "0"
    return amount(value) if abs(value) >= 1000 else f"{value:.4g}"
