"""gptcli pretrain"""

from __future__ import annotations

import click

from gptcli.cli.commands import options
from gptcli.config.run_file import MOVED, explaining_paths, load_run_file


@click.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@click.option(
    "--budget",
    metavar="TIME",
    help="Time for the whole run: 90s, 5m, 1.5h; sizes are chosen to fit. The same as -s train.budget=TIME.",
)
@click.option("--resume", is_flag=True, help="Continue from the newest intact checkpoint in run_dir, if there is one.")
@click.option("--force", is_flag=True, help="Start over in a run_dir that holds checkpoints; they are deleted.")
@options.as_json
@options.quiet
def pretrain(
    run_file: str,
    overrides: tuple[str, ...],
    budget: str | None,
    resume: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Train a model from scratch, as a run file says.

    With --budget, the sizes and steps that the run file leaves open are chosen for this machine, so that the run ends
    in time with its schedule complete.

    Ctrl-C or SIGTERM ends the run after the current step, with a checkpoint; --resume continues it to the same weights,
    bit for bit, as an uninterrupted run.

    \b
    Examples:
      gptcli pretrain examples/pretrain.yaml
      gptcli pretrain run.yaml -s train.steps=500 -s optim.learning_rate=1e-3
      gptcli pretrain examples/budget.yaml --budget 10m
      gptcli pretrain runs/demo/run.yaml --resume
    """
    from gptcli.cli import console
    from gptcli.config.train import PretrainConfig

    overrides = overrides if budget is None else (*overrides, f"train.budget={budget}")
    loaded = load_run_file(PretrainConfig, run_file, overrides, resume=resume)
    from gptcli.api.pretrain import pretrain as run  # only now torch: a bad run file answers at once
    from gptcli.train.deadline import process_start

    report = console.ConsoleReport("pretrain", quiet=quiet)
    if loaded.origins["run_dir"] == MOVED:
        report.message(f"going on in {loaded.value.run_dir}, where the run file lies beside its checkpoints")
    try:
        with explaining_paths(run_file):
            result = run(
                loaded.value, resume=resume, force=force, report=report, origins=loaded.origins, started=process_start()
            )
    finally:
        report.close()
    if as_json:
        console.write_json(result.as_dict())
    return result.exit_code
