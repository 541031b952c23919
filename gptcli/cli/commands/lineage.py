"""gptcli lineage"""

from __future__ import annotations

import click

from gptcli.cli.commands import options


@click.command(no_args_is_help=True)
@click.argument("run")
@options.as_json
def lineage(run: str, as_json: bool) -> None:
    """Show what a model comes from: hashes of inputs, recipe, tokenizer, code and base.

    RUN is a run directory or a checkpoint. What gptcli corpus run dropped, and what an audit found, stand beside it.

    \b
    Examples:
      gptcli lineage runs/demo
      diff <(gptcli lineage runs/a) <(gptcli lineage runs/b)
    """
    from gptcli.api.lineage import lineage as read
    from gptcli.cli import console

    found = read(run)
    if as_json:
        console.write_json(found.as_dict())
    else:
        console.write_facts(found.lines())
