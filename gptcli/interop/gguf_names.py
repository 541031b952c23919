"""The architectures of llama.cpp whose files are read and written: what each computes, its keys and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gptcli.interop.families import FAMILIES
from gptcli.interop.family import Family
from gptcli.interop.tensor_names import Names

_OUTSIDE = {
    "embedding": "token_embd",
    "position_embedding": "position_embd",
    "embedding_norm": "token_embd_norm",
    "final_norm": "output_norm",
    "head": "output",
}
_INSIDE = {
    "attention_norm": ("attn_norm",),
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.projection": ("attn_output",),
    "attention.query_norm": ("attn_q_norm",),
    "attention.key_norm": ("attn_k_norm",),
    "attention_post_norm": ("post_attention_norm",),
    "mlp_norm": ("ffn_norm",),
    "mlp.up": ("ffn_gate", "ffn_up"),
    "mlp.projection": ("ffn_down",),
    "mlp_post_norm": ("post_ffw_norm",),
}
_UNGATED = {"mlp.up": ("ffn_up",)}
_FUSED = {"attention.qkv": ("attn_qkv",), "mlp.up": ("ffn_up",)}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of llama.cpp: it computes what a class of transformers does."""

    name: str
    family: Family
    names: Names
    activations: tuple[str, ...]  # that a file of it stands for; the first is taken from a file
    keys: Mapping[str, str] = field(default_factory=dict)  # fields of ours -> keys that only this architecture has
    derived: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda _: {}  # fields of ours that no key says, from all
    windows: bool = False  # whether llama.cpp heeds a sliding window in it
    approximated: str = ""  # of the activations the one that llama.cpp computes by GELU's tanh formula
    frequencies: bool = False  # whether it reads rope_freqs.weight, the scaled rotation of Llama 3.1


def _names(inside: Mapping[str, tuple[str, ...]] | None = None, *, pairs: bool = False) -> Names:
    return Names(
        outside=_OUTSIDE,
        block="blk.{}.",
        inside={**_INSIDE, **(inside or {})},
        rotation="pairs" if pairs else "halves",
    )


def _gemma(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"embedding_scale": fields["hidden_size"] ** 0.5}


def _scaled(fields: Mapping[str, Any], largest: int) -> dict[str, Any]:
    """Return the attention scale of Gemma 2 and 3, whose largest model divides by the model's width over its heads."""
    width = fields["hidden_size"] // fields["num_heads"] if fields["num_layers"] == largest else fields["head_dim"]
    return _gemma(fields) | {"attention_scale": width**-0.5}


def _gemma2(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**_scaled(fields, 46), "attention_pattern": ("sliding", "full")}


def _gemma3(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**_scaled(fields, 62), "attention_pattern": ("sliding",) * 5 + ("full",),
            "rope_local_theta": fields.get("rope_local_theta", 10000.0)}  # fmt: skip


def _architecture(name: str, family: str, names: Names, *activations: str, **more: Any) -> Architecture:
    return Architecture(name=name, family=FAMILIES[family], names=names, activations=activations, **more)


_SOFTCAP = {"logit_softcap": "final_logit_softcapping"}
_WINDOW = {"sliding_window": "attention.sliding_window"}
_PARALLEL = {"parallel_block": "use_parallel_residual"}
_GRANITE = {
    "embedding_scale": "embedding_scale",
    "residual_scale": "residual_scale",
    "attention_scale": "attention.scale",
    "logit_scale": "logit_scale",  # that by which the logits are divided
}

# In the order in which a model is exported as the first that holds it.
_ROWS = (
    _architecture("gpt2", "GPT2LMHeadModel", _names(_FUSED), "gelu"),
    _architecture("llama", "LlamaForCausalLM", _names(pairs=True), "swiglu", frequencies=True),
    _architecture("qwen3", "Qwen3ForCausalLM", _names(), "swiglu"),
    _architecture("qwen2", "Qwen2ForCausalLM", _names(), "swiglu"),
    _architecture("gemma", "GemmaForCausalLM", _names(), "geglu", derived=_gemma),
    _architecture("gemma2", "Gemma2ForCausalLM", _names(), "geglu", derived=_gemma2, windows=True,
                  keys={**_SOFTCAP, **_WINDOW, "attention_softcap": "attn_logit_softcapping"}),
    _architecture("gemma3", "Gemma3ForCausalLM", _names(), "geglu", derived=_gemma3, windows=True,
                  keys={**_SOFTCAP, **_WINDOW, "rope_local_theta": "rope.freq_base_swa"}),
    _architecture("phi3", "Phi3ForCausalLM", _names(_FUSED), "swiglu", keys=_WINDOW),
    _architecture("olmo", "OlmoForCausalLM", _names(pairs=True), "swiglu"),
    _architecture("olmo2", "Olmo2ForCausalLM", _names(), "swiglu"),
    _architecture("granite", "GraniteForCausalLM", _names(pairs=True), "swiglu", keys=_GRANITE),
    _architecture("stablelm", "StableLmForCausalLM", _names(), "swiglu", keys=_PARALLEL,
                  derived=lambda fields: {"shared_norm": fields.get("parallel_block", False)}),
    _architecture("starcoder2", "Starcoder2ForCausalLM", _names(_UNGATED), "gelu"),
    _architecture("gptneox", "GPTNeoXForCausalLM", _names(_FUSED), "gelu_erf", "gelu", keys=_PARALLEL,
                  approximated="gelu_erf"),
    _architecture("phi2", "PhiForCausalLM", _names(_UNGATED), "gelu"),
    _architecture("bloom", "BloomForCausalLM", _names(_FUSED), "gelu"),
)  # fmt: skip
ARCHITECTURES = {architecture.family.architecture: architecture for architecture in _ROWS}
