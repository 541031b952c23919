"""Runs for a wall clock: sizes and steps that fit, the end in time, resuming; the guard against repeated text."""

import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import RunCli, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.api.pretrain import pretrain
from gptcli.base import units
from gptcli.base.errors import ConfigError
from gptcli.base.report import Report
from gptcli.config import yaml_file
from gptcli.config.data import DataConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig, PretrainConfig, TrainConfig
from gptcli.train.autoconfig import MAX_EPOCHS, REPEATED, REPEATED_A_LITTLE, SEVERAL_EPOCHS, AutoConfig
from gptcli.train.deadline import Deadline, process_start
from gptcli.train.run import Outcome, validations_since
from gptcli.train.schedule import learning_rate_factor
from gptcli.train.state import ScheduleRescale, TrainState

torch.set_num_threads(1)  # shapes so small that threads only wait for each other

SMALL = "model: {num_layers: 1, hidden_size: 16, num_heads: 2, context_length: 32}"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), (" 2 m ", 120)])
def test_a_duration_is_read_by_its_unit(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "5 weeks", "1e3", "nan", "m", "1" * 20])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"budget: .*write 90s, 5m or 1\.5h"):
        TrainConfig(budget=text)


def state_at(step: int, stretch: ScheduleRescale | None) -> TrainState:
    return TrainState(None, None, step=step, schedule_rescale=stretch)  # type: ignore[arg-type]


@given(
    planned=st.integers(2, 10_000),
    share=st.floats(0.01, 0.99),
    left=st.integers(1, 10_000),
    schedule=st.sampled_from(["linear", "cosine"]),
)
@settings(deadline=None)
def test_a_stretched_schedule_goes_on_from_where_it_was_and_is_complete(
    planned: int, share: float, left: int, schedule: str
) -> None:
    step = max(1, int(share * planned))
    stretch = ScheduleRescale(planned, step, float(step), step + left)
    optim = OptimConfig(schedule=schedule)
    factors = [
        learning_rate_factor(state_at(at, stretch).schedule_step(planned), planned, optim)
        for at in range(step, step + left)
    ]
    assert state_at(step, stretch).last_step(planned) == step + left
    assert factors[0] == learning_rate_factor(step, planned, optim)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
    assert state_at(step + left, stretch).schedule_step(planned) == pytest.approx(planned)


def test_another_number_of_steps_asked_for_takes_the_place_of_a_stretched_schedule() -> None:
    state = state_at(50, ScheduleRescale(100, 40, 40.0, 80))
    assert state.last_step(100) == 80
    assert state.last_step(200) == 200
    assert state.schedule_step(200) == 50


@pytest.mark.parametrize("real_step_seconds", [0.5, 1.0, 2.0])
def test_a_run_ends_in_time_at_whatever_speed(real_step_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    train = TrainConfig(steps=100, eval_every_steps=25)
    deadline = Deadline(100.0, train, pause_seconds=0.0)
    state = state_at(0, None)
    while state.step < state.last_step(train.steps):
        state.step += 1
        now += real_step_seconds
        if state.step % 5 == 0:
            deadline.keep(state, real_step_seconds)
    assert now == pytest.approx(100.0, abs=3.0)
    assert state.schedule_step(train.steps) == pytest.approx(train.steps)


def test_a_run_in_less_time_than_was_planned_takes_no_more_steps_than_there_are_data_for() -> None:
    train = TrainConfig(steps=100, eval_every_steps=25)
    deadline = Deadline(time.monotonic() + 1000, train, pause_seconds=0.0, most_steps=120)
    state = state_at(50, None)
    deadline.keep(state, 0.1)
    assert state.last_step(train.steps) == 120


def test_a_process_began_before_now_and_not_long_ago() -> None:
    assert 0 <= time.monotonic() - process_start() < 3600


@pytest.mark.parametrize(
    ("epochs", "guard"),
    [
        (SEVERAL_EPOCHS, {}),
        (SEVERAL_EPOCHS + 0.1, REPEATED_A_LITTLE),
        (MAX_EPOCHS, REPEATED_A_LITTLE),
        (MAX_EPOCHS + 0.1, REPEATED),
    ],
)
def test_text_that_is_seen_again_turns_on_a_guard(epochs: float, guard: Mapping[str, object]) -> None:
    config = PretrainConfig(run_dir="x", data=DataConfig(train=("x",)))
    settled = AutoConfig({}, Report()).regularize_repeated_data(config, epochs)
    assert settled == AutoConfig({}, Report()).fill(config, guard)


def test_text_seen_more_than_ten_times_turns_on_dropout() -> None:
    config = PretrainConfig(run_dir="x", data=DataConfig(train=("x",)))
    settled = AutoConfig({}, Report()).regularize_repeated_data(config, 10.1)
    found = (settled.model.dropout, settled.optim.weight_decay, settled.optim.cautious_decay, settled.train.patience)
    assert found == (0.1, 0.1, False, 3)


def test_pairs_are_embedded_unless_they_would_be_learnt_by_heart() -> None:
    config = PretrainConfig(run_dir="x", data=DataConfig(train=("x",)))
    choose = AutoConfig({}, Report()).choose_bigrams
    assert choose(config, MAX_EPOCHS, 1000).model.bigram_rows == 5000
    assert choose(config, MAX_EPOCHS + 0.1, 1000).model.bigram_rows == 0
    portable = dataclasses.replace(config, model=ModelConfig.from_preset("llama"))
    assert choose(portable, 1.0, 1000).model.bigram_rows == 0
    given_by_hand = AutoConfig({"model.bigram_rows": "run.yaml:3"}, Report())
    assert given_by_hand.choose_bigrams(config, 1.0, 1000).model.bigram_rows == 0


def test_values_that_are_given_win_over_the_guard() -> None:
    config = PretrainConfig(run_dir="x", data=DataConfig(train=("x",)))
    origins = {"optim.cautious_decay": "run.yaml:3", "optim.weight_decay": "default", "train.patience": "default"}
    settled = AutoConfig(origins, Report()).regularize_repeated_data(config, 100.0)
    assert not settled.optim.cautious_decay
    assert settled.optim.weight_decay > 0


def write_run_file(directory: Path, tiny: Tiny, extra: str = SMALL) -> Path:
    run_file = directory / "run.yaml"
    run_file.write_text(
        f"run_dir: {directory}/run\ndata: {{train: [{tiny.corpus}], cache_dir: {directory}/cache}}\n"
        f"tokenizer: {{path: {tiny.tokenizer}}}\n{extra}\n"
    )
    return run_file


def test_a_budget_reads_no_part_more_often_than_its_cap(tiny: Tiny, tmp_path: Path) -> None:
    run_file = write_run_file(tmp_path, tiny)
    part = f"train: [{{path: {tiny.corpus}, max_epochs: 0.1}}]"
    run_file.write_text(run_file.read_text().replace(f"train: [{tiny.corpus}]", part))
    assert run_with_budget(run_file, tmp_path / "run").finished
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    read = [record["epochs"][str(tiny.corpus)] for record in records if record["kind"] == "train"]
    assert 0.05 < read[-1] <= 0.1


def run_with_budget(run_file: Path, run_dir: Path, *, resume: bool = False) -> Outcome:
    loaded = yaml_file.load(PretrainConfig, run_file, ["train.budget=6s", "runtime.threads=1", f"run_dir={run_dir}"])
    return pretrain(loaded.value, resume=resume, report=Report(), origins=loaded.origins)


def test_a_run_with_a_budget_completes_its_schedule_and_goes_on_with_what_was_settled(
    tiny: Tiny, tmp_path: Path
) -> None:
    run_file = write_run_file(tmp_path, tiny)
    whole = run_with_budget(run_file, tmp_path / "run")
    training = json.loads((tmp_path / "run/latest/training.json").read_text())
    planned = training["run"]["train"]["steps"]
    assert whole.finished
    assert whole.step == (training["stretch"] or {"last_step": planned})["last_step"]
    shutil.rmtree((tmp_path / "run/latest").resolve())
    weights = []
    for number in range(2):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "run", copy, symlinks=True)
        assert run_with_budget(run_file, copy, resume=True).finished
        weights.append((copy / "latest/model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("origin", "seconds"), [("default", 90.0), ("run.yaml:7", None)])
def test_a_budget_gives_way_to_steps(origin: str, seconds: float | None) -> None:
    config = PretrainConfig(run_dir="x", data=DataConfig(train=("x",)), train=TrainConfig(budget="90s"))
    assert AutoConfig({"train.steps": origin}, Report()).budget_seconds(config) == seconds


def test_a_budget_of_words_is_one_line_of_advice(run_cli: RunCli, tiny: Tiny, tmp_path: Path) -> None:
    done = run_cli("pretrain", str(write_run_file(tmp_path, tiny)), "--budget", "soon")
    done.error(2, "pretrain", "budget", "write 90s, 5m or 1.5h")


def test_more_time_makes_a_larger_model(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"x" * 10_000_000)
    config = PretrainConfig(run_dir="x", data=DataConfig(train=(str(tmp_path / "text"),)))
    weights = []
    for seconds in (15.0, 60.0, 300.0, 1800.0, 36_000.0):
        settled = AutoConfig({}, Report()).choose_model_size(config, 1e11, seconds)
        weights.append(12 * settled.model.num_layers * settled.model.hidden_size**2)
        assert 1024 <= settled.train.batch_size * settled.model.context_length <= 1 << 19
    assert weights == sorted(weights)
    assert weights[-1] > 10 * weights[0]


def test_sizes_that_are_given_stay() -> None:
    model = ModelConfig(num_layers=2, hidden_size=64, num_heads=2)
    config = PretrainConfig(run_dir="x", data=DataConfig(train=("none",)), model=model)
    settled = AutoConfig({}, Report()).choose_model_size(config, 1e11, 600.0)
    assert dataclasses.replace(settled.model, context_length=model.context_length) == model


def test_windows_longer_than_a_batch_wants_come_one_at_a_time() -> None:
    config = PretrainConfig(run_dir="x", data=DataConfig(train=("none",)), model=ModelConfig(context_length=8192))
    assert AutoConfig({}, Report()).choose_model_size(config, 1e9, 10.0).train.batch_size == 1


@pytest.mark.parametrize(("save_every", "since"), [(100, 6), (200, 3), (300, 2), (1000, 0)])
def test_patience_counts_the_validations_that_have_a_checkpoint(save_every: int, since: int) -> None:
    train = TrainConfig(eval_every_steps=100, save_every_steps=save_every)
    assert validations_since(1000, 1600, train) == since
