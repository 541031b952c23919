"""Options that several commands share, each stated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

force = click.option("--force", is_flag=True, help="Replace an output that exists.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No messages and progress, only warnings and errors.")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of activations; auto is float32 on a CPU.",
)
threads = click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all cores.")
overrides = click.option(
    "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the run file; repeatable."
)


def text_input(command: F) -> F:
    """How text inputs are read."""
    for option in (
        click.option(
            "--errors",
            type=click.Choice(["strict", "replace", "ignore"]),
            default="strict",
            show_default=True,
            help="What becomes of undecodable bytes.",
        ),
        click.option("--encoding", default="utf-8", show_default=True, help="Of the text."),
        click.option("--field", default="text", show_default=True, help="JSONL field that holds the text."),
    ):
        command = option(command)
    return command


def on_device(command: F) -> F:
    """Where and in what precision a model runs."""
    return device(dtype(threads(command)))
