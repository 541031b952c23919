"""Metrics of runs as curves: which there are, and their points over steps, tokens or seconds. Standard library only."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gptcli.base.errors import ConfigError
from gptcli.train.metrics import Record, number_of

Axis = Literal["step", "tokens", "seconds"]


@dataclass(frozen=True)
class Curve:
    """Points of one metric of one run, in order of x."""

    name: str
    points: list[tuple[float, float]]


def metric_names(records: Sequence[Record]) -> list[str]:
    """List KIND.FIELD of every number that the records hold, in the order in which they come."""
    names = {
        f"{record['kind']}.{field}": None
        for record in records
        for field in record
        if field != "step" and number_of(record, field) is not None
    }
    return list(names)


def find_metric(records: Sequence[Record], wanted: str) -> str:
    """Return the full name of a metric, whose unit may be left out: `train.loss` is `train.loss_nats`; else
    ConfigError."""
    names = metric_names(records)
    found = [name for name in names if name == wanted] or [name for name in names if name.startswith(f"{wanted}_")]
    if not found:
        raise ConfigError(f"--metric: no {wanted!r}; there are {', '.join(names)}")
    return found[0]


def curve(name: str, records: Sequence[Record], metric: str, axis: Axis) -> Curve:
    """Return the points of `metric`, a full name; without those that are not finite."""
    kind, field = metric.split(".", 1)
    steps, places = _places(records, axis)
    points = [
        (_interpolated(record["step"], steps, places), value)
        for record in records
        if record["kind"] == kind and (value := number_of(record, field)) is not None
    ]
    return Curve(name, sorted(points))


def _places(records: Sequence[Record], axis: Axis) -> tuple[list[float], list[float]]:
    """Return steps, and the tokens or seconds of training up to each."""
    train = [record for record in records if record["kind"] == "train"]
    steps, places = [0.0], [0.0]
    for record in train:
        step = float(record["step"])
        if step <= steps[-1]:
            continue
        match axis:
            case "step":
                place = step
            case "tokens":
                place = number_of(record, "tokens") or places[-1]
            case "seconds":
                place = places[-1] + (step - steps[-1]) * (number_of(record, "step_seconds") or 0.0)
        steps.append(step)
        places.append(place)
    return steps, places


def _interpolated(step: float, steps: Sequence[float], places: Sequence[float]) -> float:
    """Return the place of a step between those that are known; beyond the last, as fast as before."""
    if len(steps) < 2:
        return float(step)
    right = min(max(bisect.bisect_left(steps, step), 1), len(steps) - 1)
    share = (step - steps[right - 1]) / (steps[right] - steps[right - 1])
    return places[right - 1] + share * (places[right] - places[right - 1])
