"""Plot metrics of runs in a terminal, as an image, or in TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError, RefusedError
from gptcli.base.escape import escape
from gptcli.observe.curves import Axis, Curve, curve, find_metric, metric_names
from gptcli.observe.history import metrics_of
from gptcli.observe.tensorboard import EVENT_FILES, Board, check_installed

IMAGE_FORMATS = ("png", "svg", "pdf")
INCHES, DOTS_PER_INCH = (8.0, 4.5), 150


def find_curves(runs: Sequence[str], metrics: Sequence[str], axis: Axis) -> tuple[str, list[Curve]]:
    """Return the full name of the metric, or of several `A, B`, and a curve for each of each run; DataError for one
    without points."""
    records = {run: metrics_of(run) for run in runs}
    every = [record for found in records.values() for record in found]
    names = list(dict.fromkeys(find_metric(every, wanted) for wanted in metrics))
    curves = []
    for run, found in records.items():
        for name in names:
            made = curve(f"{escape(run)} {name}" if len(names) > 1 else escape(run), found, name, axis)
            if not made.points:
                raise DataError(f"{escape(run)}: no {name}; it has {', '.join(metric_names(found))}")
            curves.append(made)
    return ", ".join(names), curves


def check_image(path: Path, *, force: bool) -> None:
    """Check, before any work, that the image may be written and that matplotlib is installed."""
    if path.suffix[1:] not in IMAGE_FORMATS:
        raise ConfigError(f"-o: {escape(str(path))} is no image; end it in .{', .'.join(IMAGE_FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("-o: the package matplotlib is not installed; pip install 'gptcli[plot]'") from None
    fsio.check_writable(path, force=force)


def save_image(curves: Sequence[Curve], path: Path, *, title: str, x_name: str) -> None:
    """Draw the curves into an image file; it appears whole or not at all."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    for one in curves:
        axes.plot(*zip(*one.points, strict=True), label=one.name.replace("$", r"\$"), linewidth=1.5)
    axes.set_xlabel(x_name)
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    axes.legend()
    with fsio.replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=DOTS_PER_INCH)


def save_tensorboard(runs: Sequence[str], directory: Path, *, force: bool) -> None:
    """Write every number of the runs' metrics as TensorBoard scalars, a run a directory. RefusedError where there are
    scalars already, since TensorBoard would show both; `force` removes them."""
    check_installed()
    records = {run: metrics_of(run) for run in runs}
    names = {run: os.path.basename(os.path.abspath(run)) for run in records}
    if len(set(names.values())) < len(names):
        raise ConfigError(
            "--tensorboard: two runs have the same name, which would be their directory; name one of them"
        )
    boards = {run: directory / name if len(names) > 1 else directory for run, name in names.items()}
    old = [file for board in boards.values() for file in board.glob(EVENT_FILES)]
    if old and not force:
        raise RefusedError(f"{escape(str(old[0].parent))}: holds scalars already; pass --force to replace them")
    for file in old:
        fsio.remove_file(file)
    for run, found in records.items():
        board = Board(boards[run])
        for record in found:
            board.add(record)
        board.close()
