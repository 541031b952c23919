"""gptcli bench [machine]"""

from __future__ import annotations

import click

from gptcli.commands import options


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@options.device
@options.threads
@options.as_json
def machine(device: str, threads: int | None, as_json: bool) -> None:
    """What the machine can do: peak of matrix products, and bandwidth of reading memory.

    \b
    Example:
      gptcli bench machine --json | jq .float32_flops_per_second
    """
    from gptcli import console
    from gptcli.runs.bench import machine_facts

    facts = machine_facts(device=device, threads=threads)
    if as_json:
        console.write_json(facts.as_dict())
    else:
        console.write_facts(facts.lines())
