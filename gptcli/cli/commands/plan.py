"""gptcli plan"""

from __future__ import annotations

import re

import click

from gptcli.cli.commands import options

PREFIXES = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


class Bytes(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.5
    """A number of bytes: 80GB, 24GiB, 1000000."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(i?)b?", str(value).strip().lower())
        if not match or float(match[1]) <= 0:
            self.fail(f"{value!r} is not an amount of memory; write 80GB, 24GiB or a number of bytes", param, ctx)
        return round(float(match[1]) * (1024 if match[3] else 1000) ** PREFIXES[match[2]])


class BitsPerSecond(click.ParamType):  # type: ignore[type-arg]  # generic only from click 8.5
    """10Gbit, 400G or a number of bits -> bytes a second."""

    name = "bits"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(bit)?(/s)?", str(value).strip().lower())
        if not match or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a bandwidth; write 10Gbit, 400Gbit or a number of bits a second", param, ctx)
        return float(match[1]) * 1000.0 ** PREFIXES[match[2]] / 8


@click.command(no_args_is_help=True)
@click.argument("run_file")
@options.overrides
@click.option("--on", "accelerator", help="Plan for this accelerator: h200, h100, a100, ...  [default: this machine]")
@click.option(
    "--peak-flops", type=options.FiniteRange(min=1), help="Peak FLOP/s of any other accelerator; goes with --memory."
)
@click.option("--memory", type=Bytes(), help="Memory of any other accelerator: 80GB, 24GiB.")
@click.option("--mfu", default=0.4, show_default=True, type=options.FiniteRange(0, 1, min_open=True),
              help="Share of the peak that training reaches.")  # fmt: skip
@click.option("--measure", is_flag=True, help="Take the time from a few real steps on this machine.")
@click.option("--price", type=options.FiniteRange(min=0), help="Price of the machine per hour.")
@click.option(
    "--watts", type=options.FiniteRange(min=0, min_open=True), help="Power of the machine.  [default: the data sheet's]"
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 1 << 16),
              help="Processes that share the steps, each on a device of its own.")  # fmt: skip
@click.option("--bandwidth", type=BitsPerSecond(), help="Of the network between them, one way: 10Gbit, 400Gbit.")
@options.as_json
def plan(
    run_file: str,
    overrides: tuple[str, ...],
    accelerator: str | None,
    peak_flops: float | None,
    memory: int | None,
    mfu: float,
    measure: bool,
    price: float | None,
    watts: float | None,
    processes: int,
    bandwidth: float | None,
    as_json: bool,
) -> None:
    """Plan a run: parameters, tokens, FLOPs, memory, time, energy and price.

    Memory is shown by part, at the moment when it peaks; if the run does not fit, the micro-batch sizes that would are
    named. FLOPs are 6 a weight and token, plus attention's 12 x layers x width x context a token.

    \b
    Examples:
      gptcli plan run.yaml --measure
      gptcli plan examples/gpt3-175b.yaml --on h100 --mfu 0.45 --price 2.5
      gptcli plan examples/gpt2-124m.yaml --on h100 --processes 8 --bandwidth 400Gbit
      gptcli plan run.yaml --peak-flops 312e12 --memory 40GB --json | jq .seconds
    """
    from gptcli.cli import console

    if measure and (accelerator or peak_flops):
        raise click.UsageError("--measure is for this machine; leave out --on and --peak-flops")
    if accelerator and (peak_flops or memory):
        raise click.UsageError("--on names a device, --peak-flops and --memory describe another; give one of them")
    if memory and not peak_flops:
        raise click.UsageError("--memory goes with --peak-flops")
    if measure and processes > 1:
        raise click.UsageError("--measure is of one process; leave out --processes")
    if bandwidth and processes == 1:
        raise click.UsageError("--bandwidth goes with --processes")
    config = options.load_sized(run_file, overrides)
    from gptcli.observe import plan as planning
    from gptcli.observe.plan_report import Rates

    if accelerator:
        target = planning.named_accelerator(accelerator, config.runtime)
    elif peak_flops:
        target = planning.other_accelerator(peak_flops, memory, config.runtime)
    else:
        target = planning.this_machine(config)
    found = planning.plan(
        config, target, Rates(mfu, price, watts), measure=measure, processes=processes, bytes_per_second=bandwidth
    )
    if as_json:
        console.write_json(found.as_dict())
    else:
        console.write_facts(found.lines())
