"""gptcli pretrain"""

from __future__ import annotations

import click

from gptcli.cli.commands import options, training
from gptcli.config.run_file import load_run_file


@click.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@click.option(
    "--budget",
    metavar="TIME",
    help="Time for the whole run: 90s, 5m, 1.5h; sizes are chosen to fit. The same as -s train.budget=TIME.",
)
@training.resume
@training.force
@training.nproc
@options.as_json
@options.quiet
def pretrain(
    run_file: str,
    overrides: tuple[str, ...],
    budget: str | None,
    nproc: int | None,
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

    With --nproc N, or started by torchrun or srun, several processes share the steps. The bits are those of one.

    \b
    Examples:
      gptcli pretrain examples/pretrain.yaml
      gptcli pretrain run.yaml -s train.steps=500 -s optim.learning_rate=1e-3
      gptcli pretrain examples/budget.yaml --budget 10m
      gptcli pretrain runs/demo/run.yaml --resume
      gptcli pretrain run.yaml --nproc 4
      torchrun --nproc-per-node 8 -m gptcli pretrain run.yaml
    """
    from gptcli.config.train import PretrainConfig

    overrides = overrides if budget is None else (*overrides, f"train.budget={budget}")
    loaded = load_run_file(PretrainConfig, run_file, overrides, resume=resume)
    if nproc and nproc > 1:
        flags = training.flags_of(resume=resume, force=force, as_json=as_json, quiet=quiet)
        return training.launch("pretrain", run_file, overrides, nproc, flags)
    from gptcli.api.pretrain import pretrain as run  # only now torch: a bad run file answers at once
    from gptcli.train.deadline import process_start

    return training.run_training(
        "pretrain",
        run,
        loaded,
        run_file,
        as_json=as_json,
        quiet=quiet,
        resume=resume,
        force=force,
        origins=loaded.origins,
        started=process_start(),
    )
