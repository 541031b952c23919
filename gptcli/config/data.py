"""The `data` and `tokenizer` sections of a run file for pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptcli.config.schema import Section, is_name, number, value


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Section):
    """What is learnt from: files, directories, globs, or one directory made by `gptcli prepare`."""

    train: tuple[str, ...] = value(doc="text, JSONL (.gz too), directories, globs, or a prepared directory")
    validation: tuple[str, ...] = value((), "held-out inputs; empty: a part of `train` is held out")
    validation_fraction: float = number(0.05, "share of `train` held out where `validation` is empty", ge=0, lt=1)
    validation_split: Literal["tail", "document"] = value(
        "tail", "hold out the last bytes of the corpus, or documents drawn by a hash of their number"
    )
    field: str = value("text", "JSONL field that holds the text")
    encoding: str = value("utf-8", "encoding of the text")
    errors: Literal["strict", "replace", "ignore"] = value("strict", "what to do with undecodable bytes")
    cache_dir: str | None = value(None, "where prepared data are kept, null: $XDG_CACHE_HOME/gptcli")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.train:
            yield "train", "no input; name a file"
        if not is_name(self.cache_dir):
            yield "cache_dir", "must name a directory"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(Section):
    """The tokenizer: a file, or how to train one on the training text."""

    path: str | None = value(None, "a tokenizer.json; null: train one on the training text")
    vocab_size: int = number(4096, "tokens of a trained vocabulary, specials included", ge=257, le=1 << 20)
    pattern: Literal["gpt2", "llama3", "qwen2"] = value("gpt2", "split pattern of a trained tokenizer")
    max_bytes: int | None = number(200_000_000, "train on at most so many bytes, sampled evenly", ge=1)
