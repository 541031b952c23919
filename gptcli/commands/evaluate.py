"""gptcli evaluate"""

from __future__ import annotations

from typing import Any

import click

from gptcli.commands import options


@click.command(no_args_is_help=True)
@click.argument("run")
@click.argument("inputs", nargs=-1, metavar="[TEXT]...")
@click.option("--stride", type=click.IntRange(min=1), help="New tokens of a window.  [default: half of the context]")
@options.text_input
@options.on_device
@options.quantize
@options.as_json
@options.quiet
def evaluate(run: str, inputs: tuple[str, ...], as_json: bool, quiet: bool, **how: Any) -> None:
    """Loss, perplexity and bits per byte of a model on text.

    RUN is a run directory or a checkpoint. Every byte of the text is scored once, in windows that overlap so that
    a token sees at least half of a context before it. Text is read from stdin where none is named.

    \b
    Example:
      gptcli evaluate runs/demo held-out.txt --json | jq .bits_per_byte
    """
    from gptcli import console
    from gptcli.runs.evaluate import evaluate as run_evaluate

    result = run_evaluate(run, inputs or ("-",), report=console.ConsoleReport("evaluate", quiet=quiet), **how)
    if as_json:
        console.write_json(result.as_dict())
    else:
        console.write_facts(result.lines())
