"""Options that the commands of gptcli corpus share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from gptcli.base.errors import ConfigError
from gptcli.cli.commands import options

F = TypeVar("F", bound=Callable[..., Any])


class Bytes(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """A number of bytes: 500M, 1G, 1000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,12})\s*([kMGT]?)B?", str(value).strip())
        if not match or not int(match[1]):
            self.fail(f"{value!r} is not a size; write 500M or 1G", param, ctx)
        return int(match[1]) * 1000 ** ("kMGT".find(match[2] or "-") + 1)


inputs = click.argument("inputs", nargs=-1, metavar="[INPUT]...")
output = click.option(
    "-o",
    "--output",
    type=options.Output(path_type=Path),
    help="File to write, compressed if it ends in .gz.  [default: stdout]",
)
workers = click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of processes."
)
share = options.FiniteRange(0, 1)


def reading(command: F) -> F:
    """Add the options of how inputs become documents."""
    return workers(options.text_input(command))


def take_reading(how: dict[str, Any]) -> Any:
    """Take the options of reading out of those that a command was given."""
    from dataclasses import fields

    from gptcli.api.corpus.reading import Reading
    from gptcli.data.text import TextOptions

    names = [declared.name for declared in fields(TextOptions) if declared.name in how]
    return Reading(TextOptions(**{name: how.pop(name) for name in names}), how.pop("workers"))


def given_inputs(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the inputs, or standard input where none is named and nobody types there."""
    from gptcli.cli import console

    if inputs:
        return inputs
    if console.stdin_is_terminal():
        raise ConfigError("no input; name files, or pipe JSONL in")
    return ("-",)


@contextmanager
def destination(
    inputs: tuple[str, ...], output: Path | None, *others: Path | None, force: bool
) -> Iterator[Path | BinaryIO]:
    """Yield the output, or stdout where none is named, after checking it and the other files that will be written."""
    from gptcli.api.corpus.output import check_outputs

    check_outputs(inputs, [output, *others], force=force)
    yield output if output is not None else sys.stdout.buffer
    if output is None:
        sys.stdout.buffer.flush()
