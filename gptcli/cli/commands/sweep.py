"""gptcli sweep"""

from __future__ import annotations

import re

import click

from gptcli.base.errors import ConfigError
from gptcli.cli.commands import options


@click.command(no_args_is_help=True)
@click.argument("sweep_file")
@options.overrides
@click.option("--part", default="1/1", metavar="K/N", help="Train only the K-th of N parts of a grid.  [default: 1/1]")
@options.as_json
@options.quiet
def sweep(sweep_file: str, overrides: tuple[str, ...], part: str, as_json: bool, quiet: bool) -> int:
    """Train a run file with several values of some keys, and compare.

    The file names a run file, the keys with their values, and a directory in which every trial is a run like any other.
    All combinations are trained to their end, or, with first_steps, by successive halving: all for a few steps, the
    best of them for more. The same command goes on where it was stopped. At the end there is one table, the best first.

    \b
    Examples:
      gptcli sweep examples/sweep.yaml
      gptcli sweep sweep.yaml --part 2/4     # on the second of four machines that share a file system
    """
    from gptcli.cli import console
    from gptcli.config import yaml_file
    from gptcli.config.sweep import SweepConfig

    config = yaml_file.load(SweepConfig, sweep_file, overrides).value
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part {part}: want K/N with K from 1 to N")
    from gptcli.api.sweep import sweep as run

    report = console.ConsoleReport("sweep", quiet=quiet)
    try:
        found = run(config, report, part=(int(match[1]), int(match[2])))
    finally:
        report.close()
    if as_json:
        console.write_json(found.as_dict())
    else:
        console.write_table(*found.table())
    return found.exit_code
