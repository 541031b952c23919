"""gptcli quickstart"""

from __future__ import annotations

from pathlib import Path

import click

from gptcli.base.units import parse_duration
from gptcli.cli.commands import options


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.5
    """A number of seconds: 30s, 10m, 1.5h."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option("--budget", type=Duration(), default="150s", show_default=True, help="Time for everything.")
@click.option("-o", "--output", default="quickstart", show_default=True, type=options.Output(path_type=Path),
              help="Directory for the corpus, the tokenizer and the run.")  # fmt: skip
@options.force
def quickstart(budget: float, output: Path, force: bool) -> int:
    """Make a model that writes from nothing, in minutes, offline.

    Collects the English that Python carries (the language reference and the standard library's docstrings), trains a
    tokenizer on it, pretrains a GPT, measures it on held-out text, and lets it write. Each step is shown as the command
    that does the same.

    \b
    Example:
      gptcli quickstart --budget 10m -o first-model
    """
    from gptcli.api.quickstart import quickstart as run
    from gptcli.cli import console

    report = console.ConsoleReport("quickstart")
    try:
        result = run(budget, output, force=force, report=report)
    finally:
        report.close()
    if result.exit_code == 0:
        console.write_line(result.sample + "\n")
        console.write_facts(result.summary)
    return result.exit_code
