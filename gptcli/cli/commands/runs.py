"""gptcli runs [list|compare]"""

from __future__ import annotations

import click

from gptcli.cli.commands import options
from gptcli.cli.commands.groups import DefaultGroup


@click.group(cls=DefaultGroup, default="list", bare=True)
def runs() -> None:
    """List runs, or compare two. `gptcli runs DIR` is `gptcli runs list DIR`.

    \b
    Examples:
      gptcli runs
      gptcli runs experiments/ --json | jq -r '.[] | select(.state == "running").path'
      gptcli runs compare runs/a runs/b
    """


@runs.command(name="list")
@click.argument("directories", nargs=-1, metavar="[DIR]...")
@options.as_json
def list_runs(directories: tuple[str, ...], as_json: bool) -> None:
    """List the runs at or below directories, by default runs/, one a line; a damaged run says so in its line.

    \b
    Example:
      gptcli runs list experiments/ --json | jq -r '.[] | select(.state == "running").path'
    """
    from gptcli.cli import console
    from gptcli.observe.history import HEADER, find_runs, read_run

    found = [read_run(path) for path in find_runs(directories or ("runs",))]
    if as_json:
        console.write_json([facts.as_dict() for facts in found])
    else:
        console.write_table(HEADER, [facts.cells() for facts in found])


@runs.command(no_args_is_help=True)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@options.as_json
def compare(first: str, second: str, as_json: bool) -> None:
    """Compare two runs: the settings in which they differ, their metrics at equal steps, and their ends.

    \b
    Example:
      gptcli runs compare runs/a runs/b
    """
    from gptcli.api.compare import compare as run
    from gptcli.cli import console

    found = run(first, second)
    if as_json:
        console.write_json(found.as_dict())
    else:
        console.write_table(("", first, second), found.rows())
