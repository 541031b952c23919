"""The `data` and `tokenizer` sections of a run file for pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptcli.config.schema import Section, is_name, number, value


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Section):
    """The training text: files, directories, globs, or one directory made by `gptcli prepare`."""

    train: tuple[str, ...] = value(
        doc="text, JSON or Parquet files (.gz, .xz, .bz2, .zst too), directories, globs, or one prepared directory",
        path=True,
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

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.train:
            yield "train", "no input; name a file"
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
