"""gptcli merge"""

from __future__ import annotations

from pathlib import Path

import click

from gptcli.cli.commands import options


@click.command(no_args_is_help=True)
@click.argument("run")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The checkpoint to make.")
@options.force
@options.quiet
def merge(run: str, output: Path, force: bool, quiet: bool) -> None:
    """Merge a LoRA run and its base model into one checkpoint.

    \b
    Examples:
      gptcli finetune run.yaml -s lora.rank=8 -s run_dir=runs/adapted
      gptcli merge runs/adapted -o runs/merged
    """
    from gptcli.api.merge import merge as run_merge
    from gptcli.cli import console

    parameters = run_merge(run, output, force=force)
    console.ConsoleReport("merge", quiet=quiet).message(f"{output}: {parameters:,} parameters")
