"""gptcli classify"""

from __future__ import annotations

from typing import Any

import click

from gptcli.cli.commands import options


@click.command(no_args_is_help=True)
@click.argument("run")
@click.option("--jsonl", is_flag=True, help="Read JSON records; they come back with their other fields.")
@click.option("--field", default="text", show_default=True, help="JSONL field that holds the text.")
@options.also
@options.on_device
def classify(run: str, jsonl: bool, **how: Any) -> None:
    """Classify each line of stdin.

    RUN is a run of gptcli finetune with task classify, or a checkpoint of one. For every line of input one line is
    written, in order: the label, a tab and its probability. With --jsonl it is the record with `label` and
    `probabilities` added; a `label` that it had comes back as `input_label`.

    \b
    Examples:
      gptcli classify runs/sentiment < reviews.txt
      gptcli classify runs/a --with runs/b --with runs/c < reviews.txt
      gptcli classify runs/sentiment --jsonl < reviews.jsonl | jq -r 'select(.probabilities.negative > 0.9) | .text'
    """
    from gptcli.api.classify import classify as run_classify
    from gptcli.cli import console

    report = console.ConsoleReport("classify")
    lines = console.stdin_lines(blank=not jsonl)
    for record in run_classify(run, lines, ready=lines.ready, jsonl=jsonl, report=report, **how):
        if jsonl:
            console.write_json(record)
        else:
            label = record["label"]
            console.write_fields((label, f"{record['probabilities'][label]:.4f}"))
