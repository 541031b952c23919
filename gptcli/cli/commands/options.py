"""Options that several commands share, each stated once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from gptcli.base.errors import ConfigError
from gptcli.config.run_file import load_run_file
from gptcli.config.train import PretrainConfig


def ask_for_huge_pages() -> None:
    """Let torch, which must not be imported yet, ask Linux for huge pages where a tensor is large: weights are read
    faster while a text is written. Training gains nothing by them and would take more memory."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class FiniteRange(click.FloatRange):
    """A number in a range; NaN and infinity, which click counts in every range, are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a finite number", param, ctx)


class Output(click.Path):
    """A file or directory to make; `-`, elsewhere a stream, and an empty word are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-":
            self.fail("this is not written to stdout; name a file or directory", param, ctx)
        if not value:
            self.fail("the name is empty; name a file or directory", param, ctx)
        return super().convert(value, param, ctx)


texts_at_once = click.IntRange(min=1, max=1 << 16)  # what a row holds is there from the start

F = TypeVar("F", bound=Callable[..., Any])

force = click.option("--force", is_flag=True, help="Replace an existing output.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Show only warnings and errors.")
as_json = click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")
device = click.option(
    "--device", default="auto", show_default=True, help="Where to compute: auto, cpu, cuda, cuda:1 or mps."
)
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Dtype of activations; auto is float32 on a CPU.",
)
threads = click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
quantize = click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="Store weights in 8 bits, on a CPU or CUDA; gptcli evaluate shows the loss of quality.",
)


def batch_size(what: str) -> Callable[[F], F]:
    """Make the option --batch-size: how many of `what` are written at once."""
    limit = "[default: 64, or what a quarter of the memory has room for]"
    return click.option("--batch-size", type=texts_at_once, help=f"{what} written at once.  {limit}")


also = click.option(
    "--with",
    "also",
    metavar="RUN2",
    multiple=True,
    help="Average the label probabilities with those of RUN2; repeatable.",
)
overrides = click.option(
    "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the run file; repeatable."
)


def load_sized(run_file: str, overrides: tuple[str, ...]) -> PretrainConfig:
    """Return a pretraining run; ConfigError where its sizes are left to the moment when it starts."""
    loaded = load_run_file(PretrainConfig, run_file, overrides)
    if loaded.value.train.budget is not None and loaded.origins["train.steps"] == "default":
        raise ConfigError(
            f"{loaded.origins['train.budget']}: train.budget leaves steps and sizes to the start of the run; "
            "give train.steps and the sizes, or name the run.yaml of a run"
        )
    return loaded.value


def text_input(command: F) -> F:
    """Add the options of how text inputs are read."""
    for option in (
        click.option(
            "--on-bad-row",
            type=click.Choice(["error", "skip"]),
            default="error",
            show_default=True,
            help="What to do with a JSON record without the text: stop, or skip and count it.",
        ),
        click.option(
            "--separator",
            metavar="line|blank|TEXT",
            help="Split a text file into documents at each line, at blank lines, or at a text such as '<|endoftext|>'.",
        ),
        click.option(
            "--errors",
            type=click.Choice(["strict", "replace", "ignore"]),
            default="strict",
            show_default=True,
            help="How to treat undecodable bytes, and lone surrogates in JSON.",
        ),
        click.option("--encoding", default="utf-8", show_default=True, help="Encoding of the text."),
        click.option("--field", default="text", show_default=True, help="JSONL field that holds the text."),
    ):
        command = option(command)
    return command


def on_device(command: F) -> F:
    """Add the options of where and in what precision a model runs."""
    return device(dtype(threads(command)))
