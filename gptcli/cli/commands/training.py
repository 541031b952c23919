"""The common part of gptcli pretrain and gptcli finetune: the flags of a run, and how one is started and ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from gptcli.base.errors import ConfigError
from gptcli.config.run_file import MOVED, explaining_paths
from gptcli.device.world import speaks, world

if TYPE_CHECKING:
    from gptcli.config.yaml_file import Loaded

resume = click.option(
    "--resume", is_flag=True, help="Continue from the newest intact checkpoint in run_dir, if there is one."
)
force = click.option("--force", is_flag=True, help="Start over in a run_dir that holds checkpoints; they are deleted.")

nproc = click.option(
    "--nproc", type=click.IntRange(1, 1024), help="Processes to share the steps, on this machine.  [default: 1]"
)


def launch(
    command: str,
    run_file: str,
    overrides: Sequence[str],
    count: int,
    flags: Mapping[str, bool],
    *,
    option: str = "--nproc",
) -> int:
    """Run the command in `count` processes, with the `flags` that are true; return its exit code."""
    if world().count > 1:
        raise click.UsageError(f"{option} starts processes, and this is one of several already; leave it out")
    if run_file == "-":
        raise ConfigError("the run file is stdin, which several processes cannot read; save it to a file")
    from gptcli.device.launch import launch as start

    settings = [part for override in overrides for part in ("-s", override)]
    return start([command, *settings, *(flag for flag, given in flags.items() if given), "--", run_file], count)


def flags_of(*, resume: bool, force: bool, as_json: bool, quiet: bool) -> dict[str, bool]:
    """Return the flags of a run for `launch`."""
    return {"--resume": resume, "--force": force, "--json": as_json, "--quiet": quiet}


def run_training(
    command: str,
    verb: Callable[..., Any],
    loaded: Loaded[Any],
    run_file: str,
    *,
    as_json: bool,
    quiet: bool,
    **how: Any,
) -> int:
    """Train as a run file says, with its progress shown; return the exit code."""
    from gptcli.cli import console

    report = console.ConsoleReport(command, quiet=quiet)
    if loaded.origins["run_dir"] == MOVED and speaks():
        report.message(f"going on in {loaded.value.run_dir}, where the run file lies beside its checkpoints")
    try:
        with explaining_paths(run_file):
            result = verb(loaded.value, report=report, **how)
    finally:
        report.close()
    if as_json and world().rank == 0:
        console.write_json(result.as_dict())
    exit_code: int = result.exit_code
    return exit_code
