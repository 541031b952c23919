"""The plan's memory: what autograd keeps is what memory.py counts, and a real run takes what was planned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.generate.kv_cache import KVCache, cache_bytes
from gptcli.model.gpt import GPT
from gptcli.observe.memory import Workload, activation_bytes, optimizer_bytes
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
    [("modern", {}), ("gpt2", {}), ("llama", {}), ("gpt2", {"dropout": 0.1}), ("llama", {"num_kv_heads": 2})],
    ids=str,
)
def test_activations_are_what_autograd_keeps(preset: str, changes: dict[str, Any], dtype: torch.dtype) -> None:
    work = workload(preset, dtype, **changes)
    work.model.train()
    assert activation_bytes(work) == pytest.approx(kept_bytes(work, dtype), rel=0.03)


@pytest.mark.parametrize("optim", ["modern", "classic"])
def test_optimizer_state_is_what_the_optimizers_make(optim: str) -> None:
    work = workload("modern", optim=optim)
    optimizers = make_optimizers(work.model, work.optim, step_tokens=1024, dtype=torch.float32)
    made = optimizers.tensors(create=True).values()
    assert optimizer_bytes(work) == pytest.approx(sum(tensor.nbytes for tensor in made), rel=0.001)


def test_the_cache_of_keys_and_values_is_what_the_engine_allocates() -> None:
    config = workload("llama", num_kv_heads=2).model.config
    cache = KVCache(config, 3, 50, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert cache_bytes(config, 3, 50, activation_size=2) == cache.keys.nbytes + cache.values.nbytes
