"""A run file of made-up sections, with every kind of field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

from gptcli.base.errors import ConfigError
from gptcli.config.schema import Section, number, value
from gptcli.config.yaml_file import parse

NAME = "run.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape(Section):
    preset: str = value("small", "named sizes")
    layers: int = number(2, "blocks", ge=1, le=100)
    heads: int = number(2, "heads", ge=1)
    width: int = number(8, "width", ge=1)
    head_width: int | None = number(None, "null: width / heads", ge=1)
    norm: Literal["rmsnorm", "layernorm"] = value("rmsnorm", "norm")
    bias: bool = value(False, "biases")
    dropout: float = number(0.0, "share", ge=0, lt=1)
    scale: float | None = number(None, "null: 1", gt=0)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"layers": 3},
        "large": {"layers": 48, "heads": 4, "norm": "layernorm", "scale": 0.5},
    }

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.width % self.heads:
            yield "heads", f"{self.heads} heads do not divide width {self.width}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Data(Section):
    train: tuple[str, ...] = value(doc="input files")
    weights: tuple[float, ...] = value((), "of the inputs")
    lengths: tuple[int, ...] | None = value(None, "of the inputs")
    cache_dir: str | None = value(None, "where prepared data are kept")
    errors: Literal["strict", "ignore"] | None = value(None, "what to do")


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter(Section):
    rank: int = number(8, "rank", ge=1)
    name: str = value("lora", "kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates(Section):
    peak: float = number(1e-3, "peak rate", gt=0)
    warmup_steps: int = number(0, "linear rise", ge=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(Section):
    title: str = value("", "free text")
    steps: int = number(10, "optimizer steps", ge=1)
    data: Data
    shape: Shape = field(default_factory=Shape)
    big: Shape = field(default_factory=lambda: Shape(preset="large", layers=7))
    rates: Rates = field(default_factory=Rates)
    adapter: Adapter | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rates.warmup_steps > self.steps:
            yield "rates", f"warmup_steps {self.rates.warmup_steps} exceed steps {self.steps}"


GOOD = """\
title: a run
steps: 100
data:
  train: [a.txt, b.txt]
  weights: [0.5, 1e-1]
shape:
  layers: 6
  heads: 4
  dropout: 0.1  # a comment
rates: {peak: 1e-4, warmup_steps: 10}
adapter:
  rank: 4
"""


def problems(text: str, *overrides: str, cls: type[Section] = Run) -> Sequence[str]:
    with pytest.raises(ConfigError) as caught:
        parse(cls, text, name=NAME, overrides=overrides)
    return caught.value.problems
