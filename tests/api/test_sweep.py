"""gptcli sweep: grids, successive halving, resuming, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result, RunCli, Tiny

from gptcli.config.sweep import SweepConfig

Swept = Callable[..., Result]


def test_trials_are_all_combinations() -> None:
    vary = ("a.b=[1, 2]", "c=[[x, y], z]")
    config = SweepConfig(sweep_dir="s", run_file="r", vary=vary)
    assert list(config.trials()) == [
        ("a.b=1", "c=[x, y]"), ("a.b=1", "c=z"), ("a.b=2", "c=[x, y]"), ("a.b=2", "c=z"),
    ]  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> Swept:
    (tmp_path / "sweep.yaml").write_text(
        f"sweep_dir: trials\nrun_file: {tiny.run_file}\nvary:\n  - optim.muon_learning_rate=[0.02, 1e-6]\n"
        "  - runtime.seed=[1, 2]\n"
    )
    return lambda *how: run_cli("sweep", "sweep.yaml", *how, cwd=tmp_path)


def test_a_grid_in_parts_ends_in_one_table_and_is_not_trained_again(sweep: Swept, tmp_path: Path) -> None:
    assert sweep("--part", "2/2", "-q").code == 0
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["trial-002", "trial-004"]
    found = sweep("--json", "-q")
    assert found.code == 0, found.err
    trials = json.loads(found.out)["trials"]
    scores = [trial["bits_per_byte"] for trial in trials]
    assert scores == sorted(scores)
    assert len(scores) == 4
    assert {trial["settings"]["optim.muon_learning_rate"] for trial in trials[:2]} == {"0.02"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    table = sweep("-q").text.splitlines()
    assert "optim.muon_learning_rate" in table[0]
    assert len(table) == 5
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}


def test_trials_that_began_with_other_settings_are_refused_and_more_steps_are_trained(
    sweep: Swept, tmp_path: Path
) -> None:
    one = "vary=optim.muon_learning_rate=[0.02]"
    assert sweep("-q", "-s", one).code == 0
    refused = sweep("-q", "-s", "vary=optim.muon_learning_rate=[0.01]")
    refused.error(3, "sweep", "trials/trial-001: optim.muon_learning_rate is 0.01, was 0.02", "another sweep_dir")
    run_file = (tmp_path / "sweep.yaml").read_text().partition("run_file: ")[2].partition("\n")[0]
    steps = int(re.findall(r"\bsteps: (\d+)", Path(run_file).read_text())[0])
    (tmp_path / "longer.yaml").write_text(Path(run_file).read_text().replace(f"steps: {steps}", f"steps: {steps + 1}"))
    found = sweep("-q", "--json", "-s", one, "-s", "run_file=longer.yaml")
    assert found.code == 0, found.err
    assert [trial["step"] for trial in json.loads(found.out)["trials"]] == [steps + 1]


def test_trials_of_other_text_are_refused_though_they_are_finished(sweep: Swept, tmp_path: Path, tiny: Tiny) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(tiny.corpus.read_bytes())
    run_file = tiny.run_file.read_text().replace(str(tiny.corpus), str(text))
    assert str(text) in run_file
    (tmp_path / "run.yaml").write_text(run_file)
    how = ("-q", "-s", "vary=runtime.seed=[1]", "-s", "run_file=run.yaml")
    assert sweep(*how).code == 0
    assert sweep(*how).code == 0
    with text.open("a") as file:
        file.write("And one more line.\n")
    sweep(*how).error(3, "sweep", "trials/trial-001: the text or the rows have changed", "another sweep_dir")
    text.unlink()
    assert sweep(*how).code == 0


def test_halving_trains_the_best_for_longer(sweep: Swept, tmp_path: Path) -> None:
    found = sweep("--json", "-q", "-s", "first_steps=4", "-s", "vary=optim.muon_learning_rate=[0.02, 1e-6]")
    assert found.code == 0, found.err
    trials = json.loads(found.out)["trials"]
    rounds = [trial["round"] for trial in trials]
    assert rounds == sorted(rounds, reverse=True)
    assert rounds.count(1) == 2
    assert all(rounds.count(number) == 1 for number in range(2, max(rounds) + 1))
    steps = [trial["step"] for trial in trials if trial["round"] > 1]
    assert steps == sorted(steps, reverse=True)
    assert (tmp_path / "trials/round-1/trial-002").is_dir()


def test_mistakes_are_told_before_anything_is_trained(sweep: Swept, tmp_path: Path) -> None:
    sweep("-s", "vary=optim.muon_learning_rat=[1, 2]").error(2, "sweep", "muon_learning_rate")
    sweep("-s", "vary=optim.muon_learning_rate=[-1, 2]").error(2, "sweep", "must be > 0")
    sweep("-s", "vary=run_dir=[a, b]").error(2, "sweep", "is set by the sweep itself")
    sweep("-s", "vary=optim.beta1=0.5").error(2, "sweep", "want KEY=[VALUE, VALUE, ...]")
    sweep("--part", "3/2").error(2, "sweep", "--part 3/2")
    assert not (tmp_path / "trials").exists()
