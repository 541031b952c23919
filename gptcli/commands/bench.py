"""gptcli bench [all|machine|train]"""

from __future__ import annotations

import click

from gptcli.commands import options
from gptcli.commands.groups import DefaultGroup


@click.group(cls=DefaultGroup, default="all", no_args_is_help=True)
def bench() -> None:
    """Measure this machine, and how fast it trains and writes.

    \b
    Examples:
      gptcli bench run.yaml
      gptcli bench machine --json | jq .float32_flops_per_second
      gptcli bench train run.yaml -s train.batch_size=32
    """


@bench.command(name="all", no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@options.as_json
def everything(run_file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Training and writing with a run file's model, the machine's peaks, and how long a start takes.

    Nothing is read but the run file and its tokenizer: the tokens are made up and the weights are new.
    """
    from gptcli import configfile, console
    from gptcli.config import PretrainConfig

    config = configfile.load(PretrainConfig, run_file, overrides).value
    from gptcli.runs.bench import bench_all

    facts = bench_all(config, report=console.ConsoleReport("bench"))
    if as_json:
        console.write_json(facts.as_dict())
    else:
        console.write_facts(facts.lines())


@bench.command()
@options.device
@options.threads
@options.as_json
def machine(device: str, threads: int | None, as_json: bool) -> None:
    """What the machine can do: peak of matrix products, and bandwidth of reading memory."""
    from gptcli import console
    from gptcli.runs.bench import machine_facts

    facts = machine_facts(device=device, threads=threads)
    if as_json:
        console.write_json(facts.as_dict())
    else:
        console.write_facts(facts.lines())


@bench.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@options.as_json
def train(run_file: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Optimizer steps of a run file's shapes, on made-up tokens: tokens/s, FLOP/s, MFU and peak memory."""
    from gptcli import configfile, console
    from gptcli.config import PretrainConfig

    config = configfile.load(PretrainConfig, run_file, overrides).value
    from gptcli.runs.bench import bench_train

    facts = bench_train(config)
    if as_json:
        console.write_json(facts.as_dict())
    else:
        console.write_facts(facts.lines())
