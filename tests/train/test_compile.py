"""`runtime.compile`: the same model in other kernels, by two threads, and what is said where nothing compiles."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import GPTCLI, RunCli, Tiny

from gptcli.base.report import Report
from gptcli.config.data import DataConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import PretrainConfig, RuntimeConfig, TrainConfig
from gptcli.device.runtime import Runtime
from gptcli.train.autoconfig import AutoConfig

COMPILER = os.environ.get("CXX", "g++")


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss_nats"] for record in records if record["kind"] == "train"]


@pytest.mark.skipif(not shutil.which(COMPILER), reason="no C++ compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks_learn_what_plain_ones_do(tiny: Tiny, tmp_path: Path, run_cli: RunCli, dtype: str) -> None:
    """Three micro-batches: two beside each other, and one alone."""
    settings = [f"runtime.dtype={dtype}", "runtime.threads=3", "train.batch_size=6", "train.micro_batch_size=2"]
    settings += ["train.log_every_steps=1", "train.steps=8", "train.sample_every_steps=4"]
    found = {}
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        chosen = [*settings, f"run_dir={run}", f"runtime.compile={compiled}"]
        options = [part for setting in chosen for part in ("-s", setting)]
        result = run_cli("pretrain", tiny.run_file, "-q", *options, python=GPTCLI)
        assert result.code == 0, result.err
        assert not result.err
        found[compiled] = losses(run)
    assert len(found["true"]) == 8
    assert found["true"] == pytest.approx(found["false"], rel=1e-5 if dtype == "float32" else 5e-3)


@pytest.mark.skipif(not shutil.which(COMPILER), reason="no C++ compiler")
def test_it_is_chosen_where_it_pays_back() -> None:
    runtime = Runtime(device=torch.device("cpu"), dtype=torch.bfloat16, threads=1)
    config = PretrainConfig(run_dir="run", data=DataConfig(train=("text",)), model=ModelConfig(hidden_size=384))

    def chosen(seconds: float | None, config: PretrainConfig = config, runtime: Runtime = runtime) -> bool | None:
        return AutoConfig({}, Report()).choose_compile(config, runtime, seconds).runtime.compile

    assert chosen(400)
    assert not chosen(380)  # a step is too little faster
    assert not chosen(None, dataclasses.replace(config, train=TrainConfig(steps=1, batch_size=1)))
    assert chosen(None, dataclasses.replace(config, train=TrainConfig(steps=1_000_000)))
    assert not chosen(1e6, dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1)))
    assert not chosen(1e6, dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=768)))
    assert not chosen(1e6, runtime=dataclasses.replace(runtime, dtype=torch.float32))
    assert chosen(1, dataclasses.replace(config, runtime=RuntimeConfig(compile=True)))
    assert not chosen(1e6, dataclasses.replace(config, runtime=RuntimeConfig(compile=False)))


def test_where_nothing_compiles_the_reason_is_told(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    nothing = {"CXX": str(tmp_path / "nothing"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    options = ["-s", "runtime.compile=true", "-s", f"run_dir={tmp_path / 'run'}"]
    result = run_cli("pretrain", tiny.run_file, "-q", *options, env=nothing, python=GPTCLI)
    assert result.code == 2
    assert "error: runtime.compile: nothing can be compiled here (InvalidCxxCompiler" in result.err


def test_fine_tuning_refuses_to_compile(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    run_file = tmp_path / "tune.yaml"
    run_file.write_text(
        f"run_dir: {tmp_path / 'run'}\nbase: {tiny.run}\ntask: text\n"
        f"data: {{train: [{tiny.corpus}]}}\nruntime: {{compile: true}}\n"
    )
    result = run_cli("finetune", run_file)
    result.error(2, "finetune", "runtime.compile: is for pretrain")
