"""gptcli finetune"""

from __future__ import annotations

import click

from gptcli.cli.commands import options, training
from gptcli.config.run_file import load_run_file


@click.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@training.resume
@training.force
@training.nproc
@click.option("--allow-code", is_flag=True, help="Run the Python function that reward.function of the run file names.")
@options.as_json
@options.quiet
def finetune(
    run_file: str,
    overrides: tuple[str, ...],
    resume: bool,
    force: bool,
    nproc: int | None,
    allow_code: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Fine-tune a trained model on rows, as a run file says.

    Tasks: classify (a text and its label), instruct (prompt and completion), chat (conversations), text (more text),
    prefer (a better and a worse answer), reward (answers of the model's own, with rewards). Rows come from JSONL, CSV
    or TSV files. Ctrl-C, SIGTERM, --resume, --nproc and torchrun work as in pretrain.

    \b
    Examples:
      gptcli finetune examples/sentiment.yaml
      gptcli finetune run.yaml -s base=runs/gpt2 -s lora.rank=8
      gptcli finetune runs/sentiment/run.yaml --resume
    """
    from gptcli.config.finetune import FinetuneConfig

    loaded = load_run_file(FinetuneConfig, run_file, overrides, resume=resume)
    if nproc and nproc > 1:
        flags = training.flags_of(resume=resume, force=force, as_json=as_json, quiet=quiet)
        flags["--allow-code"] = allow_code
        return training.launch("finetune", run_file, overrides, nproc, flags)
    from gptcli.api.finetune import finetune as run  # only now torch: a bad run file answers at once

    return training.run_training(
        "finetune", run, loaded, run_file, as_json=as_json, quiet=quiet, resume=resume, force=force,
        allow_code=allow_code,
    )  # fmt: skip
