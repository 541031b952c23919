"""Mixtures: shares that hold, caps that are exact, each row once an epoch, resumed to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunCli, Tiny, english
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import ConfigError
from gptcli.config import yaml_file, yaml_write
from gptcli.config.data import DataConfig, SourceConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.mixture import BLOCK, Mixture, shares_of

SHARES = st.lists(st.floats(0.001, 100), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(SHARES, st.integers(0, 5), st.integers(1, 12_000))
def test_every_text_has_its_share_to_a_row_a_block(shares: list[float], seed: int, rows: int) -> None:
    texts, numbers = Mixture(shares, [None] * len(shares), seed).divide(0, rows)
    counts = np.bincount(texts, minlength=len(shares))
    wanted = rows * np.array(shares) / sum(shares)
    whole = rows // BLOCK * BLOCK
    if rows == whole:
        assert (abs(counts - wanted) <= 1 + rows // BLOCK).all()
    for text in range(len(shares)):  # of each text its rows in their order, none left out
        assert numbers[texts == text].tolist() == list(range(counts[text]))


def test_shares_after_ten_thousand_rows() -> None:
    texts, _ = Mixture([5.0, 3.0, 2.0], [None] * 3, 1).divide(0, 10_000)
    assert abs(np.bincount(texts) / 10_000 - [0.5, 0.3, 0.2]).max() < 0.005


@settings(max_examples=30, deadline=None)
@given(SHARES, st.lists(st.one_of(st.none(), st.integers(0, 5000)), min_size=6, max_size=6), st.data())
def test_a_row_depends_on_its_number_alone(shares: list[float], caps: list[int | None], data: st.DataObject) -> None:
    most = [None, *caps[: len(shares) - 1]]
    whole = Mixture(shares, most, 3).divide(0, 9000)
    first = data.draw(st.integers(0, 8000))
    count = data.draw(st.integers(1, 900))
    fresh = Mixture(shares, most, 3)
    part = fresh.divide(first, count)
    again = fresh.divide(first // 2, count)  # backwards, too
    for found, start in ((part, first), (again, first // 2)):
        assert found[0].tolist() == whole[0][start : start + count].tolist()
        assert found[1].tolist() == whole[1][start : start + count].tolist()
    assert fresh.taken(first).tolist() == np.bincount(whole[0][:first], minlength=len(shares)).tolist()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=4))
def test_caps_are_exact_and_the_others_take_over(caps: list[int]) -> None:
    mixture = Mixture([10.0] * len(caps) + [0.5, 0.5], [*caps, None, None], 5)
    texts, _ = mixture.divide(0, 40_000)
    counts = np.bincount(texts, minlength=len(caps) + 2)
    assert counts[:-2].tolist() == caps
    assert abs(int(counts[-1]) - int(counts[-2])) < 300
    assert mixture.taken(1_000_000)[:-2].tolist() == caps


def test_far_ahead_costs_no_time_for_each_row() -> None:
    mixture = Mixture([3.0, 1.0], [None, None], 5)
    taken = mixture.taken(20_000_000)
    assert abs(taken[0] - 15_000_000) < 20


def test_temperature_and_weights_give_the_shares() -> None:
    parts = [SourceConfig(path="a"), SourceConfig(path="b")]
    assert shares_of(parts, [900, 100], 1.0) == pytest.approx([0.9, 0.1])
    assert shares_of(parts, [900, 100], 2.0) == pytest.approx([0.75, 0.25])
    weighted = [SourceConfig(path="a", weight=1), SourceConfig(path="b", weight=4)]
    assert shares_of(weighted, [900, 100], 1.0) == pytest.approx([0.2, 0.8])


# ---------------------------------------------------------------------------------------------------------- run files


def read(text: str, *overrides: str) -> PretrainConfig:
    return yaml_file.parse(PretrainConfig, text, name="run.yaml", overrides=overrides).value


def test_parts_are_read_and_written_and_a_plain_list_stays_one() -> None:
    config = read("run_dir: r\ndata:\n  train:\n  - {path: a, weight: 2, max_epochs: 4}\n  - path: b\n    weight: 1\n")
    assert config.data.train == (
        SourceConfig(path="a", weight=2.0, max_epochs=4.0),
        SourceConfig(path="b", weight=1.0),
    )
    assert read(yaml_write.dump(config)) == config
    plain = read("run_dir: r\ndata: {train: [a, b]}\n")
    assert (plain.data.train, plain.data.mixed) == (("a", "b"), False)
    assert read("run_dir: r\ndata: {train: [x]}\n", "data.train=[a, {path: b}]").data.inputs == ("a", "b")
    assert read("run_dir: r\ndata: {train: [x]}\n", "data.train=a b").data.train == ("a b",)


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("[{path: a, wieght: 2}]", "run.yaml:3: data.train: unknown key 'wieght' of an item; did you mean 'weight'?"),
        ("[{weight: 2}]", "an item lacks path"),
        ("[{path: a, weight: -1}]", "weight: must be > 0"),
        ("[{path: a, weight: two}]", "weight: must be a number"),
        ("[{path: a, weight: 2}, b]", "give all of them one, or none"),
        ("[{path: a}, a]", "names an input twice"),
        ("[{path: a, path: b}]", "duplicate key 'path'"),
        ("[[a]]", "must be a string"),
    ],
)
def test_mistakes_in_a_mixture_are_told(train: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(f"run_dir: r\ndata:\n  train: {train}\n")
    assert problem in str(raised.value)


def test_weights_and_a_temperature_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="weights"):
        DataConfig(train=(SourceConfig(path="a", weight=2.0),), temperature=2.0)


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    (root / "large.txt").write_text(english(500, seed=2))
    (root / "small.txt").write_text(english(60, seed=3))
    return root


def mixed_run(tiny: Tiny, texts: Path, run_dir: Path, steps: int, run_cli: RunCli, *more: str) -> list[dict[str, Any]]:
    parts = f"[{{path: {texts}/large.txt, weight: 1}}, {{path: {texts}/small.txt, weight: 1, max_epochs: 2}}]"
    done = run_cli(
        "pretrain", tiny.run_file, "-s", f"run_dir={run_dir}", "-s", f"data.train={parts}", "-s",
        f"train.steps={steps}", "-s", "train.log_every_steps=1", "-s", "optim.schedule=constant", "-s",
        "optim.muon_momentum_ramp=0", *more,
    )  # fmt: skip
    assert done.code == 0, done.err
    if not more:
        assert "small.txt: 50.0% of the rows" in done.err
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_mixture_is_measured_by_source_and_resumes_to_the_bit(
    tiny: Tiny, texts: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    whole = mixed_run(tiny, texts, tmp_path / "whole", 12, run_cli)
    mixed_run(tiny, texts, tmp_path / "parts", 6, run_cli)
    parts = mixed_run(tiny, texts, tmp_path / "parts", 12, run_cli, "--resume")

    def facts(records: list[dict[str, Any]]) -> list[Any]:
        return [(r["step"], r["loss_nats"], r.get("epochs")) for r in records if r["kind"] == "train"]

    assert facts(parts) == facts(whole)
    last = [record for record in whole if record["kind"] == "train"][-1]
    small, large = (last["epochs"][f"{texts}/{name}.txt"] for name in ("small", "large"))
    assert 0 < large < small <= 2
    validation = next(record for record in whole if record["kind"] == "validation")
    assert set(validation["sources"]) == {f"{texts}/large.txt", f"{texts}/small.txt"}
    assert all(each["bits_per_byte"] > 0 for each in validation["sources"].values())
    weights = "checkpoints/step-000012/model.safetensors"
    assert (tmp_path / "parts" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_prepared_directories_are_parts_too(tiny: Tiny, texts: Path, tmp_path: Path, run_cli: RunCli) -> None:
    for name in ("large", "small"):
        done = run_cli("prepare", texts / f"{name}.txt", "-t", tiny.tokenizer, "-o", tmp_path / name, "-q")
        assert done.code == 0, done.err
    parts = f"data.train=[{{path: {tmp_path}/large}}, {{path: {tmp_path}/small}}]"
    done = run_cli("pretrain", tiny.run_file, "-s", parts, "-s", f"run_dir={tmp_path}/run", "-s", "train.steps=2")
    assert done.code == 0, done.err
    assert "large: " in done.err


def test_a_mixture_is_validated_on_the_text_that_is_named_wherever_a_part_is_raw(
    tiny: Tiny, texts: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "held.txt").write_text(english(40, seed=9))
    done = run_cli("prepare", texts / "large.txt", "-t", tiny.tokenizer, "-o", tmp_path / "large", "-q")
    assert done.code == 0, done.err
    rates = [f"optim.{name}=1e-9" for name in ("learning_rate", "embedding_learning_rate", "muon_learning_rate")]
    settings = [*rates, "train.steps=1", "train.eval_tokens=null", f"data.validation=[{tmp_path}/held.txt]"]

    told: list[str] = []

    def score(*parts: str) -> float:
        train = f"data.train=[{', '.join(f'{{path: {part}}}' for part in parts)}]"
        options = [word for setting in (*settings, train, f"run_dir={tmp_path}/run") for word in ("-s", setting)]
        done = run_cli("pretrain", tiny.run_file, "--force", "--json", *options)
        assert done.code == 0, done.err
        told.append(done.err)
        return float(json.loads(done.out)["validation"]["bits_per_byte"])

    prepared, raw = f"{tmp_path}/large", f"{texts}/small.txt"
    assert score(prepared, raw) == pytest.approx(score(raw, prepared), rel=1e-6)
    assert "large: what it holds of data.validation is learnt" in told[0]
    (tmp_path / "held.txt").write_bytes((texts / "large.txt").read_bytes())
    score(prepared, raw)
    assert f"large: holds {texts}/large.txt, on which data.validation validates" in told[-1]
    train = f"data.train=[{{path: {prepared}}}]"
    options = [word for setting in (*settings, train) for word in ("-s", setting)]
    run_cli("pretrain", tiny.run_file, "--force", *options, "-s", f"run_dir={tmp_path}/run").error(
        2, "pretrain", "data.validation: the mixture is of prepared"
    )


def test_each_part_is_validated_on_however_few_tokens_are_asked_for(
    tiny: Tiny, texts: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    whole = mixed_run(tiny, texts, tmp_path / "run", 1, run_cli, "-s", "train.eval_tokens=1")
    assert [len(record["sources"]) for record in whole if record["kind"] == "validation"] == [2]


def test_caps_that_leave_too_few_rows_are_refused_before_the_run(
    tiny: Tiny, texts: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    part = f"data.train=[{{path: {texts}/small.txt, max_epochs: 1}}]"
    done = run_cli("pretrain", tiny.run_file, "-s", part, "-s", f"run_dir={tmp_path}/run", "-s", "train.steps=5000")
    done.error(2, "pretrain", "max_epochs leaves")
