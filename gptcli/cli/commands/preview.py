"""gptcli preview"""

from __future__ import annotations

import click

from gptcli.cli.commands import options
from gptcli.config.run_file import load_run_file


@click.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@click.option("--rows", type=click.IntRange(min=1), default=5, show_default=True, help="How many rows to show.")
@click.option("--jsonl", is_flag=True, help="Write a JSON record for each row, with its ids.")
@options.quiet
def preview(run_file: str, overrides: tuple[str, ...], rows: int, jsonl: bool, quiet: bool) -> None:
    """Show the first rows of a fine-tuning run as tokens, before training.

    Tokens that are learnt stand in [brackets]. Facts about all rows, such as how many are cut, repeated, or both held
    out and trained on, go to stderr.

    \b
    Example:
      gptcli preview examples/shop/finetune.yaml --rows 2
    """
    from gptcli.cli import console
    from gptcli.config.finetune import FinetuneConfig

    config = load_run_file(FinetuneConfig, run_file, overrides).value
    from gptcli.api.preview import preview as run

    for row in run(config, rows=rows, report=console.ConsoleReport("preview", quiet=quiet)):
        if jsonl:
            console.write_json(row.as_dict())
        else:
            for line in row.lines():
                console.write_line(line)
