"""The `data` and `tokenizer` sections of a run file for pretraining."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptcli.config.schema import Section, is_name, number, value


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig(Section):
    """A part of a mixture: an input, or a prepared directory."""

    path: str = value(doc="a file, a directory, a glob or a prepared directory", path=True)
    weight: float | None = number(None, "its share of the tokens, relative to the others'", gt=0, le=1e9)
    max_epochs: float | None = number(None, "read it at most so often; the others take its place", gt=0, le=1e9)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not is_name(self.path) or self.path == "-":
            yield "path", "must name a file or a directory"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Section):
    """The training text: files, directories, globs, or one directory made by `gptcli prepare`; or a mixture."""

    train: tuple[str | SourceConfig, ...] = value(
        doc="text, JSON or Parquet files (.gz, .xz, .bz2, .zst too), directories, globs, or one prepared directory; "
        "or a mixture, [{path: a, weight: 2, max_epochs: 4}, {path: b, weight: 1}]",
        path=True,
    )
    temperature: float = number(
        1.0, "mix inputs in proportion to their tokens to the power of 1/temperature; 1: as they are", gt=0, le=100
    )
    validation: tuple[str, ...] = value((), "inputs to validate on; empty: hold out a part of `train`", path=True)
    validation_fraction: float = number(0.05, "share of `train` to hold out where `validation` is empty", ge=0, lt=1)
    validation_split: Literal["tail", "document"] = value(
        "tail", "hold out the end of the corpus (tail), or documents picked by a hash (document)"
    )
    field: str = value("text", "JSONL field that holds the text")
    encoding: str = value("utf-8", "encoding of the input files")
    errors: Literal["strict", "replace", "ignore"] = value(
        "strict", "what to do with bytes or JSON escapes that are no character"
    )
    separator: str | None = value(
        None, "what divides a text file into documents: line, blank (a blank line) or a text; null: nothing"
    )
    on_bad_row: Literal["error", "skip"] = value("error", "stop at a JSON record without text, or skip and count it")
    cache_dir: str | None = value(
        None, "directory for prepared data; null: $XDG_CACHE_HOME/gptcli", path=True, may_change=True
    )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the training text."""
        return tuple(given if isinstance(given, str) else given.path for given in self.train)

    @property
    def mixed(self) -> bool:
        """Return whether the inputs are drawn in shares of their own, instead of all of them once an epoch."""
        return self.temperature != 1.0 or any(not isinstance(given, str) for given in self.train)

    @property
    def each(self) -> tuple[DataConfig, ...]:
        """Return the parts of a mixture as data of their own; of other data, these themselves."""
        if not self.mixed:
            return (self,)
        return tuple(dataclasses.replace(self, train=(name,), temperature=1.0) for name in self.inputs)

    @property
    def parts(self) -> tuple[SourceConfig, ...]:
        """Return the inputs as parts of a mixture."""
        return tuple(SourceConfig(path=given) if isinstance(given, str) else given for given in self.train)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.train:
            yield "train", "no input; name a file"
        weights = [part.weight for part in self.parts if part.weight is not None] if self.mixed else []
        if weights and len(weights) < len(self.train):
            yield "train", "some parts of the mixture have a weight and some have none; give all of them one, or none"
        if weights and self.temperature != 1.0:
            yield "temperature", "the parts of the mixture have weights; leave out the one or the other"
        if self.mixed and len(set(self.inputs)) < len(self.train):
            yield "train", "the mixture names an input twice; name it once, with a weight"
        if not is_name(self.cache_dir):
            yield "cache_dir", "must name a directory"
        if self.separator == "":
            yield "separator", "is empty; write null, line, blank or a text"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(Section):
    """The tokenizer: a file, or how to train one on the training text."""

    path: str | None = value(None, "a tokenizer.json; null: train one on the training text", path=True)
    vocab_size: int = number(
        4096, "vocabulary size of a trained tokenizer, special tokens included", ge=257, le=1 << 20, auto=True
    )
    pattern: Literal["gpt2", "llama3", "qwen2"] = value("gpt2", "pre-tokenization pattern of a trained tokenizer")
    max_bytes: int | None = number(
        200_000_000, "train it on at most this many bytes, sampled evenly, long words counted 16-fold; null: all", ge=1
    )
