"""gptcli config show|check"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from gptcli.commands import options


def kind_of_run_file(path: str | Path) -> Any:
    """FinetuneConfig where the file names a task or a base, else PretrainConfig; a file that is not there is neither,
    and reading it says so."""
    from gptcli.config import FinetuneConfig, PretrainConfig

    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        text = ""
    return FinetuneConfig if re.search(r"^(task|base)\s*:", text, re.MULTILINE) else PretrainConfig


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

    console.write(configfile.show(configfile.load(kind_of_run_file(run_file), run_file, overrides)))


@config.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
def check(run_file: str, overrides: tuple[str, ...]) -> None:
    """Check a run file; says every problem at once, and nothing where there is none."""
    from gptcli import configfile

    configfile.load(kind_of_run_file(run_file), run_file, overrides)
