"""gptcli score"""

from __future__ import annotations

from typing import Any

import click

from gptcli.cli.commands import options


@click.command(no_args_is_help=True)
@click.argument("run")
@click.option("--jsonl", is_flag=True, help="Read JSON records; their other fields are passed on.")
@click.option("--field", default="text", show_default=True, help="JSONL field that holds the text.")
@options.on_device
def score(run: str, **how: Any) -> None:
    """Score each line of stdin: its log-probability and bits per byte, as JSON.

    \b
    Example:
      gptcli score runs/demo < sentences.txt | jq -r '[.bits_per_byte, .text] | @tsv' | sort -n
    """
    from gptcli.api.score import score as run_score
    from gptcli.cli import console

    lines = console.stdin_lines(blank=not how["jsonl"])
    for record in run_score(run, lines, ready=lines.ready, **how):
        console.write_json(record)
