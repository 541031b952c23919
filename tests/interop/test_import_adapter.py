"""`gptcli import ADAPTER --base RUN`: what PEFT computes with its adapter on the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli

pytest.importorskip("transformers")
pytest.importorskip("peft")
import peft
from hugging_face import CONFIGS, hf_directory, some_ids

import gptcli
from gptcli.api.import_model import import_model
from gptcli.base.errors import DataError
from gptcli.base.report import Report

ADAPTERS: dict[str, dict[str, Any]] = {
    "two of three": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all, rslora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
                 "rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "with the embedding": {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]},
    "with both": {"r": 2, "target_modules": ["up_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}  # fmt: skip


def adapter(model: Any, path: Path, **how: Any) -> Any:
    torch.manual_seed(3)
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **how))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.normal_(0.0, 0.1)
    tuned.save_pretrained(path)
    return tuned.eval()


def matches(config: str, tmp_path: Path, how: dict[str, Any]) -> None:
    model = hf_directory(tmp_path / "hf", CONFIGS[config])
    import_model(tmp_path / "hf", tmp_path / "base", report=Report())
    theirs = adapter(model, tmp_path / "adapter", **how)
    import_model(tmp_path / "adapter", tmp_path / "ours", base=tmp_path / "base", report=Report())
    ours, _ = gptcli.load(tmp_path / "ours")
    with torch.no_grad():
        assert float((theirs(some_ids()).logits - ours(some_ids())).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("config", ["llama", "llama-gqa-tied-theta"])
def test_an_adapter_of_peft_is_what_it_computes(name: str, config: str, tmp_path: Path) -> None:
    matches(config, tmp_path, ADAPTERS[name])


def test_an_adapter_of_gpt2_is_too(tmp_path: Path) -> None:
    how = {"r": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    matches("gpt2", tmp_path, how)


def test_what_cannot_be_merged_is_named(tmp_path: Path, run_cli: RunCli) -> None:
    model = hf_directory(tmp_path / "hf", CONFIGS["llama"])
    import_model(tmp_path / "hf", tmp_path / "base", report=Report())
    adapter(model, tmp_path / "adapter", r=2, target_modules=["q_proj"], use_dora=True)
    run_cli("import", tmp_path / "adapter", "-o", tmp_path / "out").error(2, "import", "a PEFT adapter", "--base RUN")
    with pytest.raises(DataError, match=r"use_dora.*merge_and_unload"):
        import_model(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "base", report=Report())
    run_cli("import", tmp_path / "hf", "--base", tmp_path / "base", "-o", tmp_path / "out").error(
        2, "import", "--base", "whole model"
    )
    run_cli("generate", tmp_path / "hf", "a").error(3, "generate", "gptcli import")
