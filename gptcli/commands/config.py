"""gptcli config show|check"""

from __future__ import annotations

from typing import Any

import click

from gptcli.commands import options
from gptcli.commands.run_file import load_run_file


@click.group()
def config() -> None:
    """Look at run files."""


@config.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
def show(run_file: str, overrides: tuple[str, ...]) -> None:
    """The effective run file, with the origin of each value; it is a run file itself.

    \b
    Example:
      gptcli config show examples/pretrain.yaml -s train.steps=500
    """
    from gptcli import configfile, console

    loaded: configfile.Loaded[Any] = load_run_file(None, run_file, overrides)
    console.write(configfile.show(loaded))


@config.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
def check(run_file: str, overrides: tuple[str, ...]) -> None:
    """Check a run file; says every problem at once, and nothing where there is none."""
    load_run_file(None, run_file, overrides)
