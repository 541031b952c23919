"""gptcli checkpoint list|verify"""

from __future__ import annotations

import click

from gptcli.cli.commands import options


@click.group()
def checkpoint() -> None:
    """List a run's checkpoints, or verify every byte of them.

    \b
    Examples:
      gptcli checkpoint list runs/demo
      gptcli checkpoint verify runs/demo
    """


@checkpoint.command("list", no_args_is_help=True)
@click.argument("directory")
@options.as_json
def list_command(directory: str, as_json: bool) -> None:
    """List the checkpoints of a run, oldest first: size, and which is the latest and which the best.

    \b
    Example:
      gptcli checkpoint list runs/demo
    """
    from gptcli.api.checkpoints import list_checkpoints
    from gptcli.cli import console

    found = list_checkpoints(directory)
    if as_json:
        console.write_json([listed.as_dict() for listed in found])
    else:
        console.write_facts([listed.line() for listed in found])


@checkpoint.command(no_args_is_help=True)
@click.argument("directory")
@options.as_json
@options.quiet
def verify(directory: str, as_json: bool, quiet: bool) -> int:
    """Check every byte of a run's checkpoints, or of one checkpoint.

    Compares size and sha256 of all files with the manifest, and names and shapes of the tensors with the config; every
    value must be finite. Ends with exit code 3 if a checkpoint is damaged.

    \b
    Example:
      gptcli checkpoint verify runs/demo && rsync -a runs/demo backup/
    """
    from gptcli.api.checkpoints import verify_checkpoints
    from gptcli.base.errors import DataError
    from gptcli.cli import console

    report = console.ConsoleReport("checkpoint", quiet=quiet)
    try:
        found = list(verify_checkpoints(directory, report))
    finally:
        report.close()
    if as_json:
        console.write_json([listed.as_dict() for listed in found])
    else:
        console.write_facts([listed.line() for listed in found])
    damaged = sum(listed.problem is not None for listed in found)
    if damaged:
        raise DataError(f"{damaged} of {len(found)} checkpoints cannot be trusted; --resume passes over them")
    return 0
