"""gptcli bench [all|machine|train|generate]"""

from __future__ import annotations

from typing import Any

import click

from gptcli.cli.commands import options
from gptcli.cli.commands.groups import DefaultGroup
from gptcli.device.world import world

DEFAULT_BATCHES = (1, 8, 32)


@click.group(cls=DefaultGroup, default="all", no_args_is_help=True)
def bench() -> None:
    """Measure this machine, and how fast it trains and writes. `gptcli bench RUN.yaml` is `gptcli bench all RUN.yaml`.

    \b
    Examples:
      gptcli bench run.yaml
      gptcli bench machine --json | jq .float32_flops_per_second
      gptcli bench train run.yaml -s train.batch_size=32
    """


@bench.command(name="all", no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@click.option(
    "--processes",
    type=click.IntRange(2, 1024),
    help="Measure so many processes on this machine beside one instead: their bandwidth, and the speed of a step.",
)
@options.as_json
def everything(run_file: str, overrides: tuple[str, ...], processes: int | None, as_json: bool) -> int:
    """Measure training and writing with a run file's model, the machine's peaks, and the time a start takes.

    Only the run file and its tokenizer are read: tokens are made up and weights are new. Started by torchrun or srun,
    it measures all processes that were started, as with --processes on one machine.

    \b
    Examples:
      gptcli bench all run.yaml --json | jq .training.mfu
      gptcli bench run.yaml --processes 2 --json | jq .efficiency
    """
    from gptcli.cli import console
    from gptcli.cli.commands import training

    config = options.load_sized(run_file, overrides)
    if processes is not None:
        return training.launch("bench", run_file, overrides, processes, {"--json": as_json}, option="--processes")
    report = console.ConsoleReport("bench")
    facts: Any
    if world().count > 1:
        from gptcli.api.bench_processes import bench_processes

        facts = bench_processes(config, report=report)
    else:
        from gptcli.api.bench import bench_all

        facts = bench_all(config, report=report)
    if facts is not None and as_json:
        console.write_json(facts.as_dict())
    elif facts is not None:
        console.write_facts(facts.lines())
    return 0


@bench.command()
@options.device
@options.threads
@options.as_json
def machine(device: str, threads: int | None, as_json: bool) -> None:
    """Measure this machine: its peak of matrix products, and its bandwidth of reading memory.

    \b
    Example:
      gptcli bench machine --json | jq .float32_flops_per_second
    """
    from gptcli.api.bench import machine_facts
    from gptcli.cli import console

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
    """Time optimizer steps of a run file's shapes on made-up tokens: tokens/s, FLOP/s, MFU and peak memory.

    \b
    Example:
      gptcli bench train run.yaml -s train.batch_size=32
    """
    from gptcli.cli import console

    config = options.load_sized(run_file, overrides)
    from gptcli.api.bench import bench_train

    facts = bench_train(config)
    if as_json:
        console.write_json(facts.as_dict())
    else:
        console.write_facts(facts.lines())


@bench.command(no_args_is_help=True)
@click.argument("run")
@click.option(
    "--batch",
    "batches",
    type=options.texts_at_once,
    multiple=True,
    help="Number of texts written at once; repeatable.  [default: 1 8 32]",
)
@options.on_device
@options.quantize
@options.as_json
@options.quiet
def generate(run: str, batches: tuple[int, ...], as_json: bool, quiet: bool, **how: Any) -> None:
    """Time how fast a checkpoint reads prompts and writes text: tokens/s, time to first token, MBU, memory.

    \b
    Example:
      gptcli bench generate runs/demo --quantize int8 --json | jq '.batches[0].decode_tokens_per_second'
    """
    from gptcli.api.bench_generate import bench_generate
    from gptcli.cli import console

    report = console.ConsoleReport("bench", quiet=quiet)
    facts = bench_generate(run, batches=batches or DEFAULT_BATCHES, report=report, **how)
    if as_json:
        console.write_json(facts.as_dict())
    else:
        console.write_facts(facts.lines())
