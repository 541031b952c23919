"""gptcli eval-harness"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import click

from gptcli.cli.commands import options


@click.command("eval-harness", no_args_is_help=True)
@click.argument("run")
@click.option("--tasks", required=True, metavar="NAME,...", help="Tasks of lm-eval, separated by commas.")
@click.option("--include-path", metavar="DIR", help="A directory of further task files (YAML).")
@click.option("--num-fewshot", type=click.IntRange(min=0), help="Examples before each prompt.  [default: the task's]")
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first rows of each task.")
@click.option("--as-hf", is_flag=True, help="Begin contexts as lm-eval's own hf model does, for the same numbers.")
@options.on_device
@options.as_json
@options.quiet
def eval_harness(run: str, tasks: str, as_json: bool, quiet: bool, **how: Any) -> None:
    """Run tasks of EleutherAI's lm-eval on a model.

    RUN is a run directory or a checkpoint. Needs pip install 'gptcli[eval]'. lm-eval loads the data of its tasks from
    the network, unless they are local or in its cache.

    \b
    Example:
      gptcli eval-harness runs/gpt2 --tasks hellaswag,lambada_openai --limit 100 --json
    """
    from gptcli.cli import console

    report = console.ConsoleReport("eval-harness", quiet=quiet)
    if quiet or not report.live:
        os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval draws bars of its own
    from gptcli.api.eval_harness import eval_harness as run_harness

    with contextlib.redirect_stdout(sys.stderr):  # whatever lm-eval and data loaders print
        names = [name for part in tasks.split(",") if (name := part.strip())]
        result = run_harness(run, names, report=report, **how)
    if as_json:
        console.write_json(result.as_dict())
    else:
        console.write_facts(result.lines())
