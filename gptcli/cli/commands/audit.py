"""gptcli audit"""

from __future__ import annotations

import math
from typing import Any

import click

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.cli.commands import options

FIGURES = ("extraction", "canaries", "exposure", "membership", "copied", "pii", "vocabulary")


@click.command(no_args_is_help=True)
@click.argument("run")
@click.option("--data", metavar="PREPARED", help="The training text; default the run's own, if still there.")
@click.option("--canaries", metavar="KEY", help="The key.json of corpus canaries that were in the training text.")
@click.option("--prefixes", type=click.IntRange(2, 100_000), default=200, show_default=True,
              help="Passages to recite, and texts to tell apart, of training and held-out text each.")  # fmt: skip
@click.option("--samples", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Texts to write.")
@click.option("--sample-tokens", type=click.IntRange(8), default=200, show_default=True, help="Tokens of each.")
@click.option("--temperature", type=options.FiniteRange(0, 100), default=1.0, show_default=True, help="Of the samples.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of samples, passages, intervals.")
@click.option("--fail-above", multiple=True, metavar="NAME=VALUE",
              help=f"End with exit code 1 where a figure is greater: {', '.join(FIGURES)}; repeatable.")  # fmt: skip
@options.on_device
@options.as_json
@options.quiet
def audit(
    run: str,
    data: str | None,
    canaries: str | None,
    fail_above: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **how: Any,
) -> int:
    """Measure what a model gives away of its training text.

    \b
    extraction  share of training passages that it recites: 25 tokens given, 25 right
    canaries    share that came out of the group that did most; exposure: bits of 8, chance is about 1
    membership  AUC of telling training text from held-out text; 0.5 is chance
    copied      share of its samples with 25 tokens of the training text in a row
    pii         e-mail addresses, phone numbers, cards, ... for each sample; names are not found
    vocabulary  tokens with five digits or more, or an @

    Held-out text stands beside each. The findings are kept beside the checkpoint, and stand in the model card of
    gptcli export. An audit finds what it looks for; a low figure is no proof that nothing was learnt.

    \b
    Examples:
      gptcli audit runs/demo
      gptcli audit runs/demo --canaries canaries/key.json --json
      gptcli audit runs/demo -q --fail-above extraction=0.01 --fail-above vocabulary=0
    """
    from gptcli.cli import console

    limits = dict(map(_limit, fail_above))
    from gptcli.api.audit import AuditOptions
    from gptcli.api.audit import audit as run_audit

    report = console.ConsoleReport("audit", quiet=quiet)
    amounts = {name: how.pop(name) for name in ("prefixes", "samples", "sample_tokens", "temperature", "seed")}
    found = run_audit(run, data=data, canaries=canaries, options=AuditOptions(**amounts), report=report, **how)
    report.close()
    if as_json:
        console.write_json(found.as_dict())
    else:
        console.write_facts(found.lines())
    figures = found.figures()
    if unknown := [name for name in limits if name not in figures]:
        raise ConfigError(f"--fail-above {unknown[0]}: was not measured; give --data or --canaries")
    above = [name for name, limit in limits.items() if figures[name] > limit]
    for name in above:
        report.warning(f"{name} is {figures[name]:.4g}, above {limits[name]:g}")
    return 1 if above else 0


def _limit(given: str) -> tuple[str, float]:
    name, equals, value = given.partition("=")
    try:
        if not equals or name not in FIGURES:
            raise ValueError
        if not math.isfinite(float(value)):
            raise ValueError
        return name, float(value)
    except ValueError:
        raise ConfigError(f"--fail-above {escape(given)}: want NAME=VALUE, of {', '.join(FIGURES)}") from None
