"""`gptcli runs`: what is said of runs that go on, have ended, were killed, or are damaged."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, Tiny, on_a_terminal

from gptcli.base import fsio
from gptcli.observe.history import read_run
from gptcli.train.metrics import read_metrics

BOMB = b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 30))


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the tiny run, below runs/."""
    return Path(shutil.copytree(tiny.run, tmp_path / "runs" / "a", symlinks=True))


def listed(run_cli: RunCli, *arguments: object, cwd: Path | None = None) -> list[dict[str, Any]]:
    result = run_cli("runs", *arguments, "--json", cwd=cwd)
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_a_finished_run_is_listed_with_its_figures(run: Path, tmp_path: Path, run_cli: RunCli) -> None:
    (facts,) = listed(run_cli, cwd=tmp_path)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    bits = [record["bits_per_byte"] for record in records if record["kind"] == "validation"]
    assert (facts["path"], facts["state"], facts["step"], facts["steps"]) == ("runs/a", "finished", 6, 6)
    assert facts["bits_per_byte"] == min(bits)
    assert facts["loss_nats"] == [record for record in records if record["kind"] == "train"][-1]["loss_nats"]
    assert facts["parameters"] == 300 * 32 * 2 + 2 * 12 * 32 * 32
    files = [path for path in run.rglob("*") if path.is_file() and not path.is_symlink()]
    assert facts["bytes"] == sum(path.stat().st_size for path in files)
    assert facts["problem"] is None


def test_runs_are_found_below_and_shown_as_a_table_of_tabs(run: Path, tmp_path: Path, run_cli: RunCli) -> None:
    shutil.copytree(run, tmp_path / "runs" / "deep" / "er" / "b", symlinks=True)
    (tmp_path / "runs" / "notes").mkdir()
    result = run_cli("runs", tmp_path / "runs")
    assert (result.code, result.err) == (0, "")
    header, *rows = [line.split("\t") for line in result.text.splitlines()]
    assert header[:3] == ["run", "state", "step"]
    assert [row[0] for row in rows] == [str(run), str(tmp_path / "runs" / "deep" / "er" / "b")]
    assert all(len(row) == len(header) for row in rows)
    assert listed(run_cli, run)[0]["path"] == str(run)


def test_a_run_whose_directory_is_held_is_running(run: Path) -> None:
    with fsio.locked(run):
        assert read_run(run).state == "running"
        with (run / "lock").open("a+") as file, pytest.raises(BlockingIOError):  # looking has not freed the lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert read_run(run).state == "finished"


def test_a_run_that_stopped_in_good_order_is_told_from_one_that_was_killed(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(line for line in lines if json.loads(line)["step"] <= 3))
    assert read_run(run).state == "interrupted"
    (run / "lock").write_text("pid 1 on host since then\n")
    assert read_run(run).state == "failed"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("metrics.jsonl", b'{"kind": "a", "step": 1}\nnot json\n[]\n{"kind": "tr', "metrics.jsonl: 2 damaged lines"),
        ("metrics.jsonl", b"\xff\x00\n", "metrics.jsonl: 1 damaged line"),
        ("metrics.jsonl", b'{"kind": "train", "step": %s}\n' % (b"9" * 400), "metrics.jsonl: 1 damaged line"),
        ("metrics.jsonl", b'{"kind": "train", "step": 1, "loss_nats": %s}\n[]\n' % (b"9" * 400), "1 damaged line"),
        ("run.yaml", b"a: [", "run.yaml:1: not YAML: "),
        ("run.yaml", b"\xff\xfe\x00", "run.yaml:1: byte 0xff is not UTF-8"),
        ("run.yaml", b"just text", "run.yaml:1: must be a mapping, got just text"),
        ("run.yaml", b"a: &a {b: *a}\n", "run.yaml:1: anchors and aliases"),
        ("run.yaml", BOMB, "run.yaml:1: anchors and aliases"),
        ("run.yaml", b"steps: 3\n" * 9, "run.yaml:1: unknown key 'steps'"),
        ("run.yaml", b"#" * (2 << 20), "run.yaml: larger than 1048576 bytes"),
        ("run.yaml", None, "run.yaml: missing"),
        ("checkpoints/step-000006/model.safetensors", b"\x00" * 20, "checkpoints/step-000006: damaged"),
        ("checkpoints/step-000006/model.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "step-000006: damaged"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_damage_is_told_in_the_line_of_the_run(
    name: str, content: bytes | None, problem: str, run: Path, run_cli: RunCli
) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    facts = read_run(run)
    assert facts.problem is not None
    assert problem in facts.problem
    assert run_cli("runs", run).text.splitlines()[1].endswith(facts.problem)


@pytest.mark.parametrize("kind", ["pipe", "endless device", "directory"])
@pytest.mark.parametrize("name", ["run.yaml", "metrics.jsonl", "checkpoints/step-000006/model.safetensors"])
def test_what_is_no_file_is_not_read(name: str, kind: str, run: Path, run_cli: RunCli) -> None:
    (run / name).unlink()
    match kind:
        case "pipe":
            os.mkfifo(run / name)
        case "endless device":
            (run / name).symlink_to("/dev/zero")
        case "directory":
            (run / name).mkdir()
    (facts,) = listed(run_cli, run)
    assert name.rsplit("/", 1)[0].split("/")[0] in facts["problem"]
    assert run_cli("runs", "compare", run, run).code == (3 if name == "metrics.jsonl" else 0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_cannot_be_looked_into_is_a_row(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "runs" / "hidden").mkdir(parents=True)
    (tmp_path / "runs" / "hidden").chmod(0)
    (facts,) = listed(run_cli, tmp_path / "runs")
    assert (facts["path"], facts["problem"][:17]) == (str(tmp_path / "runs" / "hidden"), "Permission denied")


def test_runs_of_fine_tuning_are_read_too(run: Path, run_cli: RunCli) -> None:
    (run / "run.yaml").write_text(f"run_dir: {run}\nbase: b\ntask: chat\ndata: {{train: [rows.jsonl]}}\n")
    (facts,) = listed(run_cli, run)
    assert (facts["problem"], facts["steps"], facts["state"]) == (None, 6, "finished")


def test_a_model_card_passes_over_half_a_line(run: Path, run_cli: RunCli, tmp_path: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st')
    assert run_cli("export", run, "-o", tmp_path / "hf", "--to", "hf", "-q").code == 0
    assert "validation bits per byte" in (tmp_path / "hf" / "README.md").read_text()


def test_half_a_line_at_the_end_is_no_damage(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st')
    problems: list[str] = []
    assert len(read_metrics(run / "metrics.jsonl", problems)) > 2
    assert problems == []


def test_a_run_that_ends_before_its_last_step_is_finished_where_it_says_so(run: Path) -> None:
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace("steps: 6", "steps: 60"))
    assert read_run(run).state == "finished"
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"kind": "end", "step": 6}
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:-1]))
    assert (read_run(run).state, read_run(run).steps) == ("interrupted", 60)


def test_a_directory_that_is_not_there_is_told(tmp_path: Path, run_cli: RunCli) -> None:
    run_cli("runs", cwd=tmp_path).error(2, "runs", "runs: no such directory")
    (tmp_path / "runs").mkdir()
    assert listed(run_cli, cwd=tmp_path) == []


def test_two_runs_are_compared_in_settings_at_equal_steps_and_at_the_end(
    run: Path, tiny: Tiny, tmp_path: Path, run_cli: RunCli
) -> None:
    other = tmp_path / "runs" / "b"
    made = run_cli("pretrain", tiny.run_file, "-s", f"run_dir={other}", "-s", "optim.learning_rate=1e-4", "-q")
    assert made.code == 0, made.err
    result = run_cli("runs", "compare", run, other, "--json")
    found = json.loads(result.out)
    assert set(found["settings"]) == {"run_dir", "optim.learning_rate"}
    assert float(found["settings"]["optim.learning_rate"][1]) == 1e-4
    assert [step["step"] for step in found["at_steps"]] == [3, 6]
    assert len(found["at_steps"][1]["validation.bits_per_byte"]) == 2
    assert found["at_the_end"]["step"] == [6, 6]
    table = [line.split("\t") for line in run_cli("runs", "compare", run, other).text.splitlines()]
    assert table[0] == ["", str(run), str(other)]
    assert {len(row) for row in table} == {3}
    run_cli("runs", "compare", run, tmp_path).error(3, "runs", "no metrics.jsonl with records")


def test_a_narrow_terminal_loses_no_figure(run: Path, session_cache: Path) -> None:
    shown = on_a_terminal(["runs", str(run)], session_cache, input=b"", env={"COLUMNS": "40", "NO_COLOR": "1"})
    assert shown.code == 0
    assert "…" not in shown.text
    assert f"{read_run(run).bits_per_byte:.4f}" in shown.text
