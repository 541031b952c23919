"""gptcli config show|keys|check"""

from __future__ import annotations

from typing import Any

import click

from gptcli.cli.commands import options
from gptcli.config.run_file import load_run_file


@click.group()
def config() -> None:
    """Inspect run files: check one, show its effective values, list every key.

    \b
    Examples:
      gptcli config keys finetune | grep ^train
      gptcli config check run.yaml
    """


@config.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
def show(run_file: str, overrides: tuple[str, ...]) -> None:
    """Print the effective run file, with the origin of each value; the output is a run file itself.

    \b
    Example:
      gptcli config show examples/pretrain.yaml -s train.steps=500
    """
    from gptcli.cli import console
    from gptcli.config import yaml_file, yaml_write

    loaded: yaml_file.Loaded[Any] = load_run_file(None, run_file, overrides)
    console.write(yaml_write.show(loaded))


@config.command()
@click.argument("command", type=click.Choice(["pretrain", "finetune"]), default="pretrain")
def keys(command: str) -> None:
    """List every key of a run file for gptcli pretrain (or finetune), with its default and meaning.

    \b
    Example:
      gptcli config keys finetune | grep ^train
    """
    from gptcli.cli import console
    from gptcli.config import yaml_write
    from gptcli.config.finetune import FinetuneConfig
    from gptcli.config.train import PretrainConfig

    section = PretrainConfig if command == "pretrain" else FinetuneConfig
    console.write_table(("key", "default", "meaning"), list(yaml_write.describe_keys(section)))


@config.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
def check(run_file: str, overrides: tuple[str, ...]) -> None:
    """Check a run file: report every problem at once, or nothing where there is none.

    \b
    Example:
      gptcli config check run.yaml -s train.steps=500 && gptcli pretrain run.yaml -s train.steps=500
    """
    load_run_file(None, run_file, overrides)
