"""`gptcli plot`: curves in characters, as an image, and as TensorBoard scalars."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import RunCli, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import ConfigError
from gptcli.observe import chart
from gptcli.observe.curves import Curve, curve, find_metric, metric_names

RECORDS = [
    {"kind": "train", "step": 10, "tokens": 1000, "loss_nats": 5.0, "step_seconds": 0.5},
    {"kind": "validation", "step": 10, "bits_per_byte": 3.0},
    {"kind": "train", "step": 20, "tokens": 2000, "loss_nats": 4.0, "step_seconds": 0.25},
    {"kind": "validation", "step": 25, "bits_per_byte": 2.0},
    {"kind": "train", "step": 30, "tokens": 3000, "loss_nats": None, "step_seconds": 0.25},
    {"kind": "sample", "step": 30, "text": "Once"},
]


def test_points_lie_at_steps_tokens_or_seconds_of_training() -> None:
    def points(metric: str, axis: str) -> list[tuple[float, float]]:
        return curve("a", RECORDS, find_metric(RECORDS, metric), axis).points  # type: ignore[arg-type]

    assert points("train.loss", "step") == [(10, 5.0), (20, 4.0)]
    assert points("train.loss_nats", "tokens") == [(1000, 5.0), (2000, 4.0)]
    assert points("train.loss", "seconds") == [(5.0, 5.0), (7.5, 4.0)]
    assert points("validation.bits_per_byte", "tokens") == [(1000, 3.0), (2500, 2.0)]
    assert points("validation.bits_per_byte", "seconds") == [(5.0, 3.0), (8.75, 2.0)]
    assert metric_names(RECORDS)[:2] == ["train.tokens", "train.loss_nats"]
    with pytest.raises(ConfigError, match=r"there are train\.tokens"):
        find_metric(RECORDS, "train.accuracy")


@settings(max_examples=30, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(0, 1e12), st.floats(-1e12, 1e12)), min_size=1, max_size=30),
    width=st.integers(1, 150),
    height=st.integers(1, 50),
    several=st.booleans(),
)
def test_a_chart_keeps_to_its_size(points: list[tuple[float, float]], width: int, height: int, several: bool) -> None:
    curves = [Curve(name, sorted(points)) for name in ("a", "b")[: 1 + several]]
    lines = chart.draw(curves, title="loss", x_name="step", width=width, height=height, colours=False)
    texts = ["".join(text for text, _ in line) for line in lines]
    assert len(lines) == max(height, chart.MIN_HEIGHT + 2 + len(curves))
    canvas = texts[1 : -1 - len(curves)]
    assert {len(text) for text in canvas} == {max(width, chart.MIN_WIDTH + chart.LABEL_WIDTH + 2)}
    drawn = "".join(canvas).translate({ord(" "): None})
    assert any(character >= "\u2801" or character in "ab" for character in drawn)


def test_a_falling_line_begins_high_and_ends_low() -> None:
    lines = chart.draw([Curve("a", [(0, 9.0), (1, 1.0)])], title="", x_name="", width=40, height=12, colours=False)
    rows = ["".join(text for text, _ in line)[chart.LABEL_WIDTH + 2 :] for line in lines[1:-2]]
    places = [next(index for index, character in enumerate(row) if character != " ") for row in rows]
    assert places == sorted(places)
    assert rows[0][0] != " "
    assert rows[-1][-1] != " "
    assert "".join(text for text, _ in lines[1]).split()[0] == "9"


def test_a_pipe_gets_eighty_columns_without_escapes(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("plot", tiny.run, tiny.run, "--metric", "validation.bits_per_byte", "--x", "seconds")
    assert (result.code, result.err) == (0, "")
    assert b"\x1b" not in result.out
    lines = result.text.splitlines()
    assert len(lines) == 23
    assert max(map(len, lines)) <= 80
    assert lines[0] == "validation.bits_per_byte"


def test_an_image_is_written_whole_and_replaced_only_by_force(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("matplotlib")
    svg, png = tmp_path / "loss.svg", tmp_path / "loss.png"
    assert run_cli("plot", tiny.run, "-o", svg).out == b""
    assert b"<svg" in svg.read_bytes()
    assert run_cli("plot", tiny.run, "-o", png).code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    run_cli("plot", tiny.run, "-o", svg).error(5, "plot", "exists; pass --force")
    assert run_cli("plot", tiny.run, "-o", svg, "--force").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "loss.svg"]
    run_cli("plot", tiny.run, "-o", tmp_path / "loss.txt").error(2, "plot", "end it in .png, .svg, .pdf")


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [(["-o", "a.png"], "matplotlib", "gptcli[plot]"), (["--tensorboard", "t"], "tensorboard", "gptcli[tensorboard]")],
    ids=["image", "tensorboard"],
)
def test_a_missing_extra_is_named_on_one_line(
    arguments: list[str], package: str, extra: str, tiny: Tiny, tmp_path: Path, run_cli: RunCli
) -> None:
    program = (
        f"import sys; sys.modules['{package}'] = None; from gptcli.cli import main; sys.exit(main.run(sys.argv[1:]))"
    )
    result = run_cli("plot", tiny.run, *arguments, python=[sys.executable, "-c", program], cwd=tmp_path)
    assert len(result.error(2, "plot", package, f"pip install '{extra}'")) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_plotted_is_told(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    run_cli("plot", tiny.run, "--metric", "train.lost").error(
        2, "plot", "no 'train.lost'; there are ", "train.loss_nats"
    )
    run_cli("plot", tmp_path).error(3, "plot", "no metrics.jsonl with records")
    run_cli("plot", tmp_path / "none").error(2, "plot", "no such directory")


def test_metrics_become_scalars_of_tensorboard(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("tensorboard")
    assert run_cli("plot", tiny.run, "--tensorboard", tmp_path / "board").code == 0
    records = [json.loads(line) for line in (tiny.run / "metrics.jsonl").read_text().splitlines()]
    bits = [(record["step"], record["bits_per_byte"]) for record in records if record["kind"] == "validation"]
    assert scalars(tmp_path / "board", "validation/bits_per_byte") == [(step, pytest.approx(b)) for step, b in bits]


def test_scalars_are_written_once_and_replaced_by_force_only(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("tensorboard")
    board, other = tmp_path / "board", tmp_path / "copies" / tiny.run.name
    assert run_cli("plot", tiny.run, "--tensorboard", board).code == 0
    run_cli("plot", tiny.run, "--tensorboard", board).error(5, "plot", "holds scalars already; pass --force")
    assert run_cli("plot", tiny.run, "--tensorboard", board, "--force").code == 0
    assert [step for step, _ in scalars(board, "validation/bits_per_byte")] == [3, 6]
    shutil.copytree(tiny.run, other)
    run_cli("plot", tiny.run, other, "--tensorboard", board).error(2, "plot", "two runs have the same name")


def test_a_run_writes_scalars_as_it_goes(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("tensorboard")
    changes = ("-s", f"run_dir={tmp_path / 'run'}", "-s", "train.tensorboard=true", "-s", "train.log_every_steps=2")
    result = run_cli("pretrain", tiny.run_file, *changes, "-q")
    assert (result.code, result.err) == (0, "")
    assert [step for step, _ in scalars(tmp_path / "run" / "tensorboard", "train/loss_nats")] == [2, 4, 6]
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_board_that_cannot_be_written_stops_no_run(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    changes = ("-s", f"run_dir={tmp_path / 'run'}", "-s", "train.tensorboard=true")
    result = run_cli("pretrain", tiny.run_file, *changes, "-q")
    assert result.code == 0
    assert len(result.error(0, "pretrain", "no more TensorBoard scalars are written")) == 1


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a tag, read by TensorBoard itself."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    found = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(tag)]
    return sorted(found)
