"""The model against the Hugging Face classes that it stands for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import make_model, random_ids
from torch import Tensor

from gptcli.model.gpt import GPT

Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)  # of the models that transformers makes


def from_gpt2(theirs: Weights, layers: int) -> Weights:
    """GPT2LMHeadModel -> our names; its Conv1D holds each matrix transposed."""
    ours = {
        "embedding.weight": theirs["transformer.wte.weight"],
        "position_embedding.weight": theirs["transformer.wpe.weight"],
        "head.weight": theirs["transformer.wte.weight"],
    }
    parts = {"attention_norm": "ln_1", "attention.qkv": "attn.c_attn", "attention.projection": "attn.c_proj"}
    parts |= {"mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.projection": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
        for layer in range(layers):
            for mine, part in parts.items():
                ours[f"blocks.{layer}.{mine}.{kind}"] = theirs[f"transformer.h.{layer}.{part}.{kind}"].t()
    return ours


def from_llama(theirs: Weights, layers: int) -> Weights:
    ours = {
        "embedding.weight": theirs["model.embed_tokens.weight"],
        "final_norm.weight": theirs["model.norm.weight"],
        "head.weight": theirs["lm_head.weight"],
    }
    for layer in range(layers):
        mine, block = f"blocks.{layer}", f"model.layers.{layer}"
        qkv = [theirs[f"{block}.self_attn.{name}_proj.weight"] for name in "qkv"]
        ours |= {
            f"{mine}.attention_norm.weight": theirs[f"{block}.input_layernorm.weight"],
            f"{mine}.attention.qkv.weight": torch.cat(qkv),
            f"{mine}.attention.projection.weight": theirs[f"{block}.self_attn.o_proj.weight"],
            f"{mine}.mlp_norm.weight": theirs[f"{block}.post_attention_layernorm.weight"],
            f"{mine}.mlp.up.weight": torch.cat([theirs[f"{block}.mlp.{name}_proj.weight"] for name in ("gate", "up")]),
            f"{mine}.mlp.projection.weight": theirs[f"{block}.mlp.down_proj.weight"],
        }
    return ours


def from_nanochat(theirs: Weights, layers: int, head_size: int) -> Weights:
    """NanoChatForCausalLM turns by the opposite angle: the same with the halves of every q and k head swapped."""

    def swapped(weight: Tensor) -> Tensor:
        return weight.view(-1, 2, head_size // 2, weight.shape[1]).flip(1).reshape(weight.shape)

    ours = {"embedding.weight": theirs["model.embed_tokens.weight"], "head.weight": theirs["lm_head.weight"]}
    for layer in range(layers):
        mine, block = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = (theirs[f"{block}.self_attn.{name}_proj.weight"] for name in "qkv")
        ours |= {
            f"{mine}.attention.qkv.weight": torch.cat([swapped(q), swapped(k), v]),
            f"{mine}.attention.projection.weight": theirs[f"{block}.self_attn.o_proj.weight"],
            f"{mine}.mlp.up.weight": theirs[f"{block}.mlp.fc1.weight"],
            f"{mine}.mlp.projection.weight": theirs[f"{block}.mlp.fc2.weight"],
        }
    return ours


@torch.no_grad()
def assert_same_logits(theirs: Any, ours: GPT, convert: Callable[[Weights], Weights]) -> None:
    for weight in theirs.parameters():  # away from ones, zeros and a small std, so that every part shows
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())), alpha=0.1)
    ours.load_state_dict(convert(theirs.state_dict()))
    ids = random_ids(3, 32)
    wanted = theirs.eval()(ids).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(ours.eval()(ids), wanted, rtol=1e-4, atol=1e-4)


def test_gpt2_has_the_logits_of_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=32, n_embd=64, n_layer=2, n_head=4))
    assert_same_logits(theirs, make_model("gpt2"), lambda weights: from_gpt2(weights, 2))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama_has_the_logits_of_transformers(kv_heads: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = make_model("llama", num_kv_heads=kv_heads)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=ours.config.mlp_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=32,
            rms_norm_eps=1e-5,
        )
    )
    assert_same_logits(theirs, ours, lambda weights: from_llama(weights, 2))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("cap", [0.0, 15.0])
def test_modern_has_the_logits_of_nanochat_in_transformers(cap: float, kv_heads: int) -> None:
    from transformers import NanoChatConfig, NanoChatForCausalLM

    theirs = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            max_position_embeddings=32,
            final_logit_softcapping=cap or None,
        )
    )
    ours = make_model("modern", num_kv_heads=kv_heads, logit_softcap=cap)
    assert_same_logits(theirs, ours, lambda weights: from_nanochat(weights, 2, ours.config.head_size))
