"""Resuming: a run that was moved, a run of an older version, and what is said where it cannot be resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import RunCli, Tiny

from gptcli.config.data import DataConfig
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.config.schema import keys_with
from gptcli.config.train import PretrainConfig
from gptcli.config.yaml_file import load
from gptcli.train.resume import as_it_began


@pytest.fixture
def moved(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny run under another name, beside nothing."""
    return Path(shutil.copytree(tiny.run, tmp_path / "old", symlinks=True))


def test_a_run_that_was_moved_goes_on_where_its_run_file_lies(moved: Path, tiny: Tiny, run_cli: RunCli) -> None:
    before = sorted(path.name for path in (tiny.run / "checkpoints").iterdir())
    result = run_cli("pretrain", moved / "run.yaml", "--resume", "-s", "train.steps=8")
    assert result.code == 0, result.err
    assert f"going on in {moved}, where the run file lies beside its checkpoints" in result.err
    assert "resumed at step 6" in result.err
    assert (moved / "checkpoints" / "step-000008").is_dir()
    assert sorted(path.name for path in (tiny.run / "checkpoints").iterdir()) == before
    assert load(PretrainConfig, moved / "run.yaml").value.run_dir == str(moved)


def test_a_run_dir_that_is_named_is_kept(moved: Path, tmp_path: Path, run_cli: RunCli) -> None:
    named = ("-s", f"run_dir={tmp_path / 'new'}", "-s", "train.steps=1")
    result = run_cli("pretrain", moved / "run.yaml", "--resume", *named)
    assert result.code == 0, result.err
    assert (tmp_path / "new" / "checkpoints" / "step-000001").is_dir()


def test_a_key_that_an_older_run_lacks_means_what_was_done_then(moved: Path, run_cli: RunCli) -> None:
    key = "optim.muon_overhead"
    text = (moved / "run.yaml").read_text()
    (moved / "run.yaml").write_text("".join(line for line in text.splitlines(True) if "muon_overhead" not in line))
    config = load(PretrainConfig, moved / "run.yaml").value
    assert as_it_began(config, moved / "run.yaml").optim.muon_overhead == 1e9
    newest = moved / "checkpoints" / "step-000006" / "training.json"
    training = json.loads(newest.read_text())
    for name in key.split(".")[:-1]:
        del training["run"][name][key.rsplit(".", 1)[1]]
    del training["run"]["train"]["patience"]  # a key whose default is what was done then
    del training["run"]["model"]["attention_pattern"]  # another, a list
    content = json.dumps(training).encode()
    newest.write_bytes(content)
    manifest = newest.with_name("manifest.json")
    listed = json.loads(manifest.read_text())
    import hashlib

    listed["files"]["training.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(listed))
    result = run_cli("pretrain", moved / "run.yaml", "--resume", "-s", "train.steps=7")
    assert result.code == 0, result.err
    assert "resumed at step 6" in result.err
    assert load(PretrainConfig, moved / "run.yaml").value.optim.muon_overhead == 1e9


def test_changed_text_is_called_so(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    run = Path(shutil.copytree(tiny.run, tmp_path / "run", symlinks=True))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(tiny.corpus.read_text() + "more\n")
    result = run_cli("pretrain", run / "run.yaml", "--resume", "-q", "-s", f"data.train={corpus}")
    result.error(3, "pretrain", "the text or the rows have changed", "gptcli finetune with task: text")
    result = run_cli("pretrain", run / "run.yaml", "--resume", "-q", "-s", "optim.learning_rate=1e-3")
    result.error(3, "pretrain", "optim.learning_rate is 0.001, was 0.006; ", "gptcli finetune with task: text")


def test_a_start_that_fails_leaves_no_directory(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text("run_dir: run\ndata: {train: [missing.txt]}\n")
    run_cli("pretrain", run_file, cwd=tmp_path).error(2, "pretrain", "missing.txt: no such file")
    run_file.write_text(f"run_dir: run\nbase: {tiny.run}\ntask: chat\ndata: {{train: [missing.jsonl]}}\n")
    run_cli("finetune", run_file, cwd=tmp_path).error(2, "finetune", "missing.jsonl: no such file")
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    (tmp_path / "run").mkdir()
    run_cli("finetune", run_file, cwd=tmp_path).error(2, "finetune")
    assert (tmp_path / "run").is_dir()


def test_relative_paths_of_a_runs_own_file_are_explained(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "corpus.txt").write_text(tiny.corpus.read_text())
    (tmp_path / "a" / "run.yaml").write_text(
        tiny.run_file.read_text().replace(str(tiny.corpus), "corpus.txt").replace(str(tiny.run), "run")
    )
    assert run_cli("pretrain", "run.yaml", "-q", cwd=tmp_path / "a").code == 0
    result = run_cli("pretrain", "../a/run/run.yaml", "--resume", "-q", "-s", "train.steps=8", cwd=tmp_path / "b")
    words = ("corpus.txt: no such file", "relative paths of ../a/run/run.yaml count from where the run was started")
    result.error(2, "pretrain", *words)
    assert list((tmp_path / "b").iterdir()) == []


def test_what_a_resumed_run_may_change_is_said_by_its_fields() -> None:
    assert sorted(keys_with(PretrainConfig, "may_change")) == [
        "data.cache_dir", "distill.teacher", "parallel.exchange", "parallel.replicate", "parallel.shard",
        "parallel.timeout_seconds", "run_dir", "runtime.activation_checkpointing", "runtime.compile",
        "runtime.device", "runtime.threads", "train.budget", "train.eval_every_steps", "train.eval_tokens",
        "train.keep_checkpoints", "train.log_every_steps", "train.micro_batch_size", "train.sample_every_steps",
        "train.sample_prompt", "train.sample_tokens", "train.save_every_steps", "train.steps", "train.tensorboard",
    ]  # fmt: skip
    assert "train.epochs" in keys_with(FinetuneConfig, "may_change")
    assert DataConfig(train=("a",)) != RowsConfig(train=("a",))
