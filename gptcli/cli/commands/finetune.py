"""gptcli finetune"""

from __future__ import annotations

import click

from gptcli.cli.commands import options
from gptcli.config.run_file import MOVED, explaining_paths, load_run_file


@click.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@click.option("--resume", is_flag=True, help="Continue from the newest intact checkpoint in run_dir, if there is one.")
@click.option("--force", is_flag=True, help="Start over in a run_dir that holds checkpoints; they are deleted.")
@options.as_json
@options.quiet
def finetune(run_file: str, overrides: tuple[str, ...], resume: bool, force: bool, as_json: bool, quiet: bool) -> int:
    """Fine-tune a trained model on rows, as a run file says.

    Tasks: classify (a text and its label), instruct (prompt and completion), chat (conversations), text (more text).
    Rows come from JSONL, CSV or TSV files. Ctrl-C, SIGTERM and --resume work as in pretrain.

    \b
    Examples:
      gptcli finetune examples/sentiment.yaml
      gptcli finetune run.yaml -s base=runs/gpt2 -s lora.rank=8
      gptcli finetune runs/sentiment/run.yaml --resume
    """
    from gptcli.cli import console
    from gptcli.config.finetune import FinetuneConfig

    loaded = load_run_file(FinetuneConfig, run_file, overrides, resume=resume)
    from gptcli.api.finetune import finetune as run  # only now torch: a bad run file answers at once

    report = console.ConsoleReport("finetune", quiet=quiet)
    if loaded.origins["run_dir"] == MOVED:
        report.message(f"going on in {loaded.value.run_dir}, where the run file lies beside its checkpoints")
    try:
        with explaining_paths(run_file):
            result = run(loaded.value, resume=resume, force=force, report=report)
    finally:
        report.close()
    if as_json:
        console.write_json(result.as_dict())
    return result.exit_code
