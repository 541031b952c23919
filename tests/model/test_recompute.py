"""Activation checkpointing: the gradients of a plain backward pass, to the bit, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import randomized

from gptcli.config.finetune import LoraConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.model import dropout
from gptcli.model.attention import PackedSequences
from gptcli.model.gpt import GPT
from gptcli.model.lora import add_adapters
from gptcli.observe.memory import Workload, pass_bytes

SHAPE: dict[str, Any] = {"vocab_size": 300, "num_layers": 3, "hidden_size": 32, "num_heads": 4, "context_length": 40}


def gradients(model: GPT, ids: torch.Tensor, lengths: list[int], *, apart: bool) -> list[torch.Tensor | None]:
    """Those of all weights; `apart`: by autograd.grad, as the second of two micro-batches has them."""
    dropout.seed(5, numpy=True)
    layout = PackedSequences(lengths, dropout=model.config.dropout) if lengths else None
    loss = model.hidden(ids, layout=layout).float().pow(3).sum()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if apart:
        return list(torch.autograd.grad(loss, weights, allow_unused=True))
    for weight in weights:
        weight.grad = None
    torch.autograd.backward(loss)
    return [weight.grad for weight in weights]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("lengths", [[], [10, 25, 5]], ids=["windows", "packed"])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2}, {"lora": True, "dropout": 0.2}], ids=str)
def test_gradients_are_the_same_to_the_bit(changes: dict[str, Any], lengths: list[int], apart: bool) -> None:
    changes = dict(changes)
    lora = changes.pop("lora", False)
    model = randomized(GPT(ModelConfig.from_preset("llama", **SHAPE, **changes)), 0.1)
    if lora:
        add_adapters(model, LoraConfig(rank=4), torch.Generator().manual_seed(2))
    model.train()
    ids = torch.randint(300, (1 if lengths else 2, 40), generator=torch.Generator().manual_seed(3))
    plain = gradients(model, ids, lengths, apart=apart)
    model.activation_checkpointing = True
    for ours, wanted in zip(gradients(model, ids, lengths, apart=apart), plain, strict=True):
        assert (ours is None) == (wanted is None)
        assert ours is None or wanted is None or torch.equal(ours, wanted)


@pytest.mark.parametrize("dtype", [4, 2])
def test_the_plan_knows_what_is_not_kept(dtype: int) -> None:
    model = GPT(ModelConfig.from_preset("llama", **SHAPE | {"num_layers": 12}))
    plain, less = (
        pass_bytes(Workload(model, OptimConfig(), 8, 1, dtype, on_cpu=True, activation_checkpointing=on))
        for on in (False, True)
    )
    inputs = 12 * 8 * 40 * 32 * dtype  # of every block
    assert inputs < less.activations < 2 * inputs < plain.activations / 3
    assert less.first_block < plain.first_block
