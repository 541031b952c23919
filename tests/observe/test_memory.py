"""The plan's memory: what is planned on tensors without values is what autograd keeps of real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.generate.kv_cache import KVCache, cache_bytes
from gptcli.model.gpt import GPT
from gptcli.observe.memory import Workload, measured_pass, pass_bytes, update_bytes
from gptcli.train.optimizers import make_optimizers

SIZES: dict[str, Any] = {
    "vocab_size": 300, "num_layers": 2, "hidden_size": 64, "num_heads": 4, "context_length": 160,
}  # fmt: skip


def workload(preset: str, dtype: torch.dtype = torch.float32, optim: str = "modern", **changes: Any) -> Workload:
    model = GPT(ModelConfig.from_preset(preset, **SIZES, **changes))
    model.initialize(torch.Generator().manual_seed(1))
    return Workload(model, OptimConfig.from_preset(optim), 2, 1, dtype.itemsize, on_cpu=True)


def kept_bytes(work: Workload, dtype: torch.dtype) -> int:
    """Bytes of the storages that autograd keeps in a forward pass, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in work.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(300, (work.micro_batch, work.model.config.context_length))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = work.model.hidden(ids, dtype=dtype)
    assert hidden.requires_grad
    found = {place: tensor for place, tensor in kept.items() if place not in weights}
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("modern", {}),
        ("modern", {"bigram_rows": 1500}),
        ("gpt2", {}),
        ("llama", {}),
        ("gpt2", {"dropout": 0.1}),
        ("gpt2", {"activation": "relu", "position": "alibi"}),
        ("llama", {"num_kv_heads": 2}),
        ("llama", {"parallel_block": True, "shared_norm": True}),
        ("llama", {"norm_placement": "both", "attention_softcap": 30.0, "sliding_window": 64}),
    ],
    ids=str,
)
def test_activations_are_what_autograd_keeps(preset: str, changes: dict[str, Any], dtype: torch.dtype) -> None:
    work = workload(preset, dtype, **changes)
    work.model.train()
    assert pass_bytes(work).activations == pytest.approx(kept_bytes(work, dtype), rel=0.03)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("preset", ["modern", "gpt2"])
def test_any_number_of_blocks_is_in_a_line_with_two_and_three(preset: str, on_cpu: bool) -> None:
    model = GPT(ModelConfig.from_preset(preset, **SIZES | {"num_layers": 7}))
    work = Workload(model, OptimConfig(), 2, 1, 2, on_cpu)
    assert pass_bytes(work) == measured_pass(work, 7)


def test_any_number_of_sequences_is_in_a_line_beyond_the_first_chunks_of_logits() -> None:
    model = GPT(ModelConfig(**SIZES | {"vocab_size": 300_000}))
    for rows in (7, 40):
        work = Workload(model, OptimConfig(), rows, 1, 4, on_cpu=True)
        assert pass_bytes(work) == measured_pass(work, 2)


def test_the_fused_attention_of_an_accelerator_keeps_no_scores() -> None:
    short, long = (
        Workload(
            GPT(ModelConfig.from_preset("gpt2", **{**SIZES, "context_length": length})), OptimConfig(), 2, 1, 2, False
        )
        for length in (160, 1600)
    )
    weights = 2 * sum(weight.numel() for name, weight in short.model.named_parameters() if "blocks." in name)
    grown = (pass_bytes(long).activations - weights) / (pass_bytes(short).activations - weights)
    assert grown == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("optim", ["modern", "classic"])
def test_optimizer_state_is_what_the_optimizers_make(optim: str) -> None:
    work = workload("modern", optim=optim)
    step_tokens = work.rows * work.model.config.context_length
    optimizers = make_optimizers(work.model, work.optim, step_tokens=step_tokens, dtype=torch.float32)
    made = optimizers.tensors(create=True).values()
    assert update_bytes(work)[0] == sum(tensor.nbytes for tensor in made)


def test_the_cache_of_keys_and_values_is_what_the_engine_allocates() -> None:
    config = workload("llama", num_kv_heads=2).model.config
    cache = KVCache(config, 3, 50, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert cache_bytes(config, 3, 50, activation_size=2) == cache.keys.nbytes + cache.values.nbytes
