"""Gemma 1 to 3: norms whose weights lie around zero, embeddings that are scaled, windows in some layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from gptcli.config.model import ModelConfig
from gptcli.interop.family import Document, number_of
from gptcli.interop.llama_families import (
    ATTENTION_BIASES,
    FIXED,
    KEYS,
    LLAMA,
    NAMES,
    layer_types,
    layers_of,
    pattern_of,
)


def _gemma(document: Document) -> dict[str, Any]:
    return {"embedding_scale": number_of(document, "hidden_size", 3072) ** 0.5}


GEMMA = dataclasses.replace(
    LLAMA,
    architecture="GemmaForCausalLM",
    model_type="gemma",
    keys={
        **KEYS,
        "num_layers": ("num_hidden_layers", 28),
        "hidden_size": ("hidden_size", 3072),
        "num_heads": ("num_attention_heads", 16),
        "num_kv_heads": ("num_key_value_heads", 16),
        "head_dim": ("head_dim", 256),
        "intermediate_size": ("intermediate_size", 24576),
        "context_length": ("max_position_embeddings", 8192),
        "vocab_size": ("vocab_size", 256000),
        "tie_embeddings": ("tie_word_embeddings", True),
    },
    activations={"geglu": ("gelu_pytorch_tanh", "gelu", "gelu_new")},  # of old files "gelu" means the tanh form too
    biases=ATTENTION_BIASES,
    only={"use_bidirectional_attention": None},
    names=dataclasses.replace(NAMES, norm_offset=1.0),
    derived=_gemma,
    classifier="GemmaForSequenceClassification",
    heads_divide=False,
)


def _gemma2(document: Document) -> dict[str, Any]:
    default = ["full_attention" if layer % 2 else "sliding_attention" for layer in layers_of(document, 26)]
    return {
        "embedding_scale": number_of(document, "hidden_size", 2304) ** 0.5,
        "attention_scale": number_of(document, "query_pre_attn_scalar", 256) ** -0.5,
        **pattern_of(document, default, document.get("sliding_window", 4096)),
    }


def _gemma2_keys(config: ModelConfig) -> dict[str, Any]:
    scalar = config.head_size if config.attention_scale is None else config.attention_scale**-2
    whole = round(scalar)
    return {
        "query_pre_attn_scalar": whole if abs(scalar - whole) < 1e-9 * scalar else scalar,
        "sliding_window": config.sliding_window or config.context_length,
        "layer_types": layer_types(config),
    }


GEMMA2 = dataclasses.replace(
    GEMMA,
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    keys={
        **GEMMA.keys,
        "num_layers": ("num_hidden_layers", 26),
        "hidden_size": ("hidden_size", 2304),
        "num_heads": ("num_attention_heads", 8),
        "num_kv_heads": ("num_key_value_heads", 4),
        "intermediate_size": ("intermediate_size", 9216),
        "attention_softcap": ("attn_logit_softcapping", 50.0),
        "logit_softcap": ("final_logit_softcapping", 30.0),
    },
    activation_key="hidden_activation",
    activations={"geglu": ("gelu_pytorch_tanh", "gelu_new"), "geglu_erf": ("gelu",)},
    fixed={**FIXED, "norm_placement": "both"},
    names=dataclasses.replace(
        GEMMA.names,
        inside={
            **NAMES.inside,
            "attention_post_norm": ("post_attention_layernorm",),
            "mlp_norm": ("pre_feedforward_layernorm",),
            "mlp_post_norm": ("post_feedforward_layernorm",),
        },
    ),
    derived=_gemma2,
    express=_gemma2_keys,
    classifier="Gemma2ForSequenceClassification",
    heads_divide=True,
)


def _gemma3(document: Document) -> dict[str, Any]:
    every = max(1, int(number_of(document, "sliding_window_pattern", 6)))
    default = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in layers_of(document, 26)]
    return {**_gemma2(document), **pattern_of(document, default, document.get("sliding_window", 4096))}


# Its config has attn_logit_softcapping too, which its attention does not read.
GEMMA3 = dataclasses.replace(
    GEMMA2,
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    keys={
        **{name: key for name, key in GEMMA2.keys.items() if name != "attention_softcap"},
        "logit_softcap": ("final_logit_softcapping", None),
        "context_length": ("max_position_embeddings", 131072),
        "vocab_size": ("vocab_size", 262208),
    },
    fixed={**GEMMA2.fixed, "qk_norm": True, "qk_norm_weight": True},
    only={"use_bidirectional_attention": False},
    rope="by kind",
    rope_theta=("rope_theta", 1000000.0),
    derived=_gemma3,
    classifier="Gemma3TextForSequenceClassification",
)
