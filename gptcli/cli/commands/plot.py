"""gptcli plot"""

from __future__ import annotations

from pathlib import Path

import click

from gptcli.cli.commands import options


@click.command(no_args_is_help=True)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--metric", "metrics", multiple=True, default=("train.loss",), show_default=True,
              help="Metric to plot, KIND.FIELD of metrics.jsonl; repeatable.")  # fmt: skip
@click.option("--x", "axis", type=click.Choice(["step", "tokens", "seconds"]), default="step", show_default=True,
              help="Horizontal axis; seconds count training steps only.")  # fmt: skip
@click.option("-o", "--output", type=options.Output(path_type=Path), help="Write an image instead: .png, .svg or .pdf.")
@click.option("--tensorboard", type=options.Output(path_type=Path), help="Write all metrics to this directory instead.")
@options.force
def plot(
    runs: tuple[str, ...],
    metrics: tuple[str, ...],
    axis: str,
    output: Path | None,
    tensorboard: Path | None,
    force: bool,
) -> None:
    """Plot curves of runs, in the terminal or as an image.

    \b
    Examples:
      gptcli plot runs/demo
      gptcli plot runs/a runs/b --metric validation.bits_per_byte --x seconds -o bits.svg
    """
    from gptcli.api import plot as plotting
    from gptcli.base.errors import ConfigError
    from gptcli.cli import console
    from gptcli.observe import chart

    if output and tensorboard:
        raise ConfigError("-o and --tensorboard: give one of them")
    if tensorboard:
        plotting.save_tensorboard(runs, tensorboard, force=force)
        return
    if output:
        plotting.check_image(output, force=force)
    title, curves = plotting.find_curves(runs, metrics, axis)  # type: ignore[arg-type]  # one of the choices
    if output:
        plotting.save_image(curves, output, title=title, x_name=axis)
        return
    width, height = console.size()  # less a line for the prompt
    lines = chart.draw(
        curves, title=title, x_name=axis, width=width, height=height - 1, colours=console.stdout_has_colours()
    )
    console.write_styled(lines)
