"""Adapters: the PEFT library reads ours and computes the same, and merged they change nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.base import fsio
from gptcli.config.finetune import LoraConfig
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import learn_merges
from gptcli.interop.peft import AdapterWeights, merge_adapter
from gptcli.model.gpt import GPT
from gptcli.model.lora import Int8LoraLinear, LoraLinear, add_adapters, keep_frozen_in
from gptcli.train import checkpoint

SHAPE: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 48, "num_heads": 4, "context_length": 64, "vocab_size": 300
}  # fmt: skip
MODELS = {
    "gpt2": ModelConfig.from_preset("gpt2", **SHAPE),
    "llama": ModelConfig.from_preset("llama", **SHAPE, num_kv_heads=2),
    "modern": ModelConfig(**SHAPE, num_kv_heads=2),
}
TARGETS: dict[str, Any] = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}


def random_gpt(config: ModelConfig, seed: int = 1) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.2)
    return model.eval()


def adapted_gpt(config: ModelConfig, lora: LoraConfig) -> GPT:
    """Adapters as after training: B is no longer zero."""
    model = random_gpt(config)
    add_adapters(model, lora, torch.Generator().manual_seed(2))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.lora_b.normal_(0.0, 0.2)
    return model


def ids() -> torch.Tensor:
    return torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(3))


def test_a_new_adapter_changes_nothing_and_only_it_is_trained() -> None:
    model = random_gpt(MODELS["llama"])
    before = model(ids())
    add_adapters(model, LoraConfig(rank=2), torch.Generator().manual_seed(2))
    assert torch.equal(model(ids()), before)
    trained = {name.rpartition(".")[2] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"lora_a", "lora_b"}


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    """Of the adapters, in bfloat16, by their names."""
    for weight in model.parameters():
        weight.grad = None
    model(ids(), dtype=torch.bfloat16).square().mean().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_frozen_matrices_in_the_dtype_of_activations_change_no_bit(name: str) -> None:
    model = adapted_gpt(MODELS[name], LoraConfig(rank=2))
    logits, wanted = model(ids(), dtype=torch.bfloat16), gradients(model)
    keep_frozen_in(model, torch.bfloat16)
    assert model.embedding.weight.dtype == torch.bfloat16
    assert torch.equal(model(ids(), dtype=torch.bfloat16), logits)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], gradient) for key, gradient in wanted.items())


@pytest.mark.parametrize("name", MODELS)
def test_frozen_matrices_in_8_bits_are_near_and_give_the_gradients_of_what_they_stand_for(name: str) -> None:
    lora = LoraConfig(rank=2, base_dtype="int8")
    model, rounded = adapted_gpt(MODELS[name], lora), adapted_gpt(MODELS[name], LoraConfig(rank=2))
    with torch.no_grad():
        for one, other in zip(model.modules(), rounded.modules(), strict=True):
            if isinstance(one, Int8LoraLinear):
                exact = other.get_parameter("weight")
                other.weight = torch.nn.Parameter(one.weight * one.row_scales[:, None], requires_grad=False)
                assert (other.weight - exact).abs().max() <= exact.abs().max() / 250
    torch.testing.assert_close(model(ids()), rounded(ids()), rtol=1e-4, atol=1e-4)
    for one in (model, rounded):
        one(ids()).square().mean().backward()
    wanted = {name: weight.grad for name, weight in rounded.named_parameters() if weight.grad is not None}
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_merged_or_read_back_an_adapter_computes_the_same(tmp_path: Path, name: str, targets: str) -> None:
    lora = LoraConfig(rank=3, alpha=5.0, targets=TARGETS[targets])
    model = adapted_gpt(MODELS[name], lora)
    AdapterWeights(lora, "base").write(model, tmp_path)
    merged = random_gpt(MODELS[name])
    merge_adapter(merged, tmp_path)
    torch.testing.assert_close(merged(ids()), model(ids()), rtol=1e-4, atol=1e-4)
    again = random_gpt(MODELS[name])
    add_adapters(again, lora, torch.Generator().manual_seed(9))
    AdapterWeights(lora, "base").read(again, tmp_path)
    assert torch.equal(again(ids()), model(ids()))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_peft_computes_the_same_on_the_exported_base(tmp_path: Path, name: str, targets: str) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    from gptcli.api.export_model import export_hf
    from gptcli.base.report import Report

    lora = LoraConfig(rank=3, alpha=5.0, targets=TARGETS[targets])
    with fsio.new_directory(tmp_path / "base") as base:
        checkpoint.save_model(random_gpt(MODELS[name]), learn_merges(["a"], vocab_size=257), base, step=0)
    export_hf(tmp_path / "base", tmp_path / "hf", report=Report())
    model = adapted_gpt(MODELS[name], lora)
    (tmp_path / "adapter").mkdir()
    AdapterWeights(lora, "base").write(model, tmp_path / "adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids()).logits[..., :257], model(ids())[..., :257], rtol=1e-3, atol=1e-3)


def test_an_adapter_for_another_shape_is_refused(tmp_path: Path) -> None:
    from gptcli.base.errors import DataError

    lora = LoraConfig(rank=3)
    AdapterWeights(lora, "base").write(adapted_gpt(MODELS["llama"], lora), tmp_path)
    wider = random_gpt(dataclasses.replace(MODELS["llama"], hidden_size=64))
    with pytest.raises(DataError, match="has shape"):
        merge_adapter(wider, tmp_path)
    with pytest.raises(DataError, match="not an adapter of gptcli"):
        merge_adapter(random_gpt(MODELS["gpt2"]), tmp_path)
