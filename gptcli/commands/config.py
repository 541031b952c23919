"""gptcli config show|check"""

from __future__ import annotations

import click

from gptcli.commands import options


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
    from gptcli.config import PretrainConfig

    console.write(configfile.show(configfile.load(PretrainConfig, run_file, overrides)))


@config.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
def check(run_file: str, overrides: tuple[str, ...]) -> None:
    """Check a run file; says every problem at once, and nothing where there is none."""
    from gptcli import configfile
    from gptcli.config import PretrainConfig

    configfile.load(PretrainConfig, run_file, overrides)
