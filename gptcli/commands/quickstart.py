"""gptcli quickstart"""

from __future__ import annotations

import re
from pathlib import Path

import click

from gptcli.commands import options

UNITS = {"s": 1, "m": 60, "h": 3600}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.5
    """30s, 10m, 1.5h -> seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", str(value).strip())
        if not match or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a duration; write 30s, 10m or 1h", param, ctx)
        return float(match[1]) * UNITS[match[2]]


@click.command()
@click.option("--budget", type=Duration(), default="150s", show_default=True, help="Time for all of it.")
@click.option("-o", "--output", default="quickstart", show_default=True, type=click.Path(path_type=Path),
              help="Directory for the corpus, the tokenizer and the run.")  # fmt: skip
@options.force
def quickstart(budget: float, output: Path, force: bool) -> int:
    """From nothing to a model that writes, in minutes, offline.

    Collects the English that Python carries (the language reference and the standard library's docstrings), trains
    a tokenizer on it, pretrains a GPT, measures it on text that was held out, and lets it write. Each step is shown as
    the command that does the same.
    """
    from gptcli import console
    from gptcli.runs.quickstart import quickstart as run

    report = console.ConsoleReport("quickstart")
    try:
        result = run(budget, output, force=force, report=report)
    finally:
        report.close()
    if result.exit_code == 0:
        console.write_line(result.sample + "\n")
        console.write_facts(result.summary)
    return result.exit_code
