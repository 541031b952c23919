"""What gptcli pretrain and gptcli finetune share: the flags of a run, and how one is started and ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from gptcli.config.run_file import MOVED, explaining_paths

if TYPE_CHECKING:
    from gptcli.config.yaml_file import Loaded

resume = click.option(
    "--resume", is_flag=True, help="Continue from the newest intact checkpoint in run_dir, if there is one."
)
force = click.option("--force", is_flag=True, help="Start over in a run_dir that holds checkpoints; they are deleted.")


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
    if loaded.origins["run_dir"] == MOVED:
        report.message(f"going on in {loaded.value.run_dir}, where the run file lies beside its checkpoints")
    try:
        with explaining_paths(run_file):
            result = verb(loaded.value, report=report, **how)
    finally:
        report.close()
    if as_json:
        console.write_json(result.as_dict())
    exit_code: int = result.exit_code
    return exit_code
