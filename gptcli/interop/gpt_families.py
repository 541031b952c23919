"""Families with the body of GPT: LayerNorm, an MLP without a gate, and biases; GPT-NeoX, GPT-J and Phi rotate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from gptcli.config.model import ModelConfig, shortest_period
from gptcli.interop.family import Biases, Document, Family, list_of, number_of
from gptcli.interop.tensor_names import Names

_BIASED: Biases = {"qkv": True, "projection": True, "mlp": True, "norm": True}
_FIXED: Mapping[str, Any] = {"norm": "layernorm", "embedding_norm": False, "qk_norm": False}
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "gelu_erf": ("gelu", "gelu_python"),
    "gelu_sigmoid": ("quick_gelu",),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "relu2": ("relu2",),
}
_ERF_FIRST = {"gelu_erf": _ACTIVATIONS["gelu_erf"], **_ACTIVATIONS}


def _gpt2(document: Document) -> dict[str, Any]:
    return {"attention_scale": None if document.get("scale_attn_weights", True) else 1.0}


def _gpt2_keys(config: ModelConfig) -> dict[str, Any]:
    return {
        "scale_attn_weights": config.attention_scale != 1.0,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    preset="gpt2",
    keys={
        "num_layers": ("n_layer", 12),
        "hidden_size": ("n_embd", 768),
        "num_heads": ("n_head", 12),
        "intermediate_size": ("n_inner", None),
        "context_length": ("n_positions", 1024),
        "vocab_size": ("vocab_size", 50257),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tie_embeddings": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "dropout": ("resid_pdrop", 0.1),
        "attention_scale_by_layer": ("scale_attn_by_inverse_layer_idx", False),
    },
    activation_key="activation_function",
    activations=_ACTIVATIONS,
    fixed={**_FIXED, "position": "learned"},
    biases=_BIASED,
    only={"add_cross_attention": False},
    names=Names(
        outside={
            "embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
            "label_head": "score",
        },
        block="transformer.h.{}.",
        inside={
            "attention_norm": ("ln_1",),
            "attention.qkv": ("attn.c_attn",),
            "attention.projection": ("attn.c_proj",),
            "mlp_norm": ("ln_2",),
            "mlp.up": ("mlp.c_fc",),
            "mlp.projection": ("mlp.c_proj",),
        },
        transposed=True,
    ),
    prefix="transformer.",
    rope="none",
    derived=_gpt2,
    express=_gpt2_keys,
    classifier="GPT2ForSequenceClassification",
)


def _neo(document: Document) -> dict[str, Any]:
    layers = document.get("num_layers", 24)
    kinds = list_of(document, "attention_layers", layers, ("global", "local")) or _expanded(document, layers)
    if "local" not in kinds:
        return {}
    pattern = shortest_period([{"global": "full", "local": "sliding"}[kind] for kind in kinds])
    return {"sliding_window": document.get("window_size", 256), "attention_pattern": pattern}


def _expanded(document: Document, layers: Any) -> list[str]:
    """Expand attention_types, a list of (kinds, how often), to the kind of each layer."""
    given = document.get("attention_types") or [[["global", "local"], 12]]
    try:
        kinds = [kind for part, count in given for _ in range(min(count, 1000)) for kind in part]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != layers or not kinds or any(kind not in ("global", "local") for kind in kinds):
        raise ValueError(f"attention_types: want global or local for each of {layers} layers, got {given!r}")
    return kinds


def _neo_keys(config: ModelConfig) -> dict[str, Any]:
    kinds = ["global" if config.window(layer) is None else "local" for layer in range(config.num_layers)]
    period = shortest_period(kinds)
    if len(kinds) % len(period):
        period = tuple(kinds)
    return {
        "attention_types": [[list(period), len(kinds) // len(period)]],
        "window_size": config.sliding_window or 256,
        "embed_dropout": config.dropout,
        "attention_dropout": config.dropout,
    }


GPT_NEO = dataclasses.replace(
    GPT2,
    architecture="GPTNeoForCausalLM",
    model_type="gpt_neo",
    keys={
        "num_layers": ("num_layers", 24),
        "hidden_size": ("hidden_size", 2048),
        "num_heads": ("num_heads", 16),
        "intermediate_size": ("intermediate_size", None),
        "context_length": ("max_position_embeddings", 2048),
        "vocab_size": ("vocab_size", 50257),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tie_embeddings": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "dropout": ("resid_dropout", 0.0),
    },
    fixed={**GPT2.fixed, "attention_scale": 1.0},
    biases={**_BIASED, "qkv": False},
    only={},
    names=dataclasses.replace(
        GPT2.names,
        inside={
            **GPT2.names.inside,
            "attention.qkv": ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
            "attention.projection": ("attn.attention.out_proj",),
        },
        transposed=False,
    ),
    derived=_neo,
    express=_neo_keys,
    classifier="GPTNeoForSequenceClassification",
)

GPT_NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    preset="gpt2",
    keys={
        "num_layers": ("num_hidden_layers", 44),
        "hidden_size": ("hidden_size", 6144),
        "num_heads": ("num_attention_heads", 64),
        "intermediate_size": ("intermediate_size", 24576),
        "context_length": ("max_position_embeddings", 2048),
        "vocab_size": ("vocab_size", 50432),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "tie_embeddings": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
        "dropout": ("hidden_dropout", 0.0),
        "parallel_block": ("use_parallel_residual", True),
    },
    activations=_ERF_FIRST,
    fixed=_FIXED,
    biases={**_BIASED, "qkv": ("attention_bias", True), "projection": ("attention_bias", True)},
    names=Names(
        outside={
            "embedding": "gpt_neox.embed_in",
            "final_norm": "gpt_neox.final_layer_norm",
            "head": "embed_out",
            "label_head": "score",
        },
        block="gpt_neox.layers.{}.",
        inside={
            "attention_norm": ("input_layernorm",),
            "attention.qkv": ("attention.query_key_value",),
            "attention.projection": ("attention.dense",),
            "mlp_norm": ("post_attention_layernorm",),
            "mlp.up": ("mlp.dense_h_to_4h",),
            "mlp.projection": ("mlp.dense_4h_to_h",),
        },
        by_head=True,
    ),
    prefix="gpt_neox.",
    rope_theta=("rotary_emb_base", 10000.0),
    rotary_share=("rotary_pct", 0.25),
    express=lambda config: {"attention_dropout": config.dropout},
    classifier="GPTNeoXForSequenceClassification",
)

_MISSING_NORM = {"parallel_block": True, "shared_norm": True}

GPTJ = dataclasses.replace(
    GPT2,
    architecture="GPTJForCausalLM",
    model_type="gptj",
    keys={
        **{name: key for name, key in GPT2.keys.items() if name != "attention_scale_by_layer"},
        "num_layers": ("n_layer", 28),
        "hidden_size": ("n_embd", 4096),
        "num_heads": ("n_head", 16),
        "context_length": ("n_positions", 2048),
        "vocab_size": ("vocab_size", 50400),
        "tie_embeddings": ("tie_word_embeddings", False),
        "dropout": ("resid_pdrop", 0.0),
        "rotary_dim": ("rotary_dim", 64),
    },
    fixed={**_FIXED, **_MISSING_NORM, "position": "rope", "rope_theta": 10000.0, "head_bias": True},
    biases={"mlp": True, "norm": True},
    only={},
    names=Names(
        outside={
            "embedding": "transformer.wte",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
            "label_head": "score",
        },
        block="transformer.h.{}.",
        inside={
            "attention_norm": ("ln_1",),
            "attention.qkv": ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
            "attention.projection": ("attn.out_proj",),
            "mlp.up": ("mlp.fc_in",),
            "mlp.projection": ("mlp.fc_out",),
        },
        rotation="pairs",
    ),
    derived=lambda _: {},
    express=lambda config: {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout},
    classifier="GPTJForSequenceClassification",
)

PHI = Family(
    architecture="PhiForCausalLM",
    model_type="phi",
    preset="gpt2",
    keys={
        "num_layers": ("num_hidden_layers", 24),
        "hidden_size": ("hidden_size", 2048),
        "num_heads": ("num_attention_heads", 32),
        "num_kv_heads": ("num_key_value_heads", None),
        "intermediate_size": ("intermediate_size", 8192),
        "context_length": ("max_position_embeddings", 2048),
        "vocab_size": ("vocab_size", 51200),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "tie_embeddings": ("tie_word_embeddings", False),
        "init_std": ("initializer_range", 0.02),
        "dropout": ("resid_pdrop", 0.0),
    },
    activations=_ACTIVATIONS,
    fixed={**_FIXED, **_MISSING_NORM, "head_bias": True},
    biases=_BIASED,
    only={"qk_layernorm": False},
    names=Names(
        outside={"embedding": "model.embed_tokens", "final_norm": "model.final_layernorm", "head": "lm_head",
                 "label_head": "score"},
        block="model.layers.{}.",
        inside={
            "attention_norm": ("input_layernorm",),
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.projection": ("self_attn.dense",),
            "mlp.up": ("mlp.fc1",),
            "mlp.projection": ("mlp.fc2",),
        },
    ),
    prefix="model.",
    rotary_share=("partial_rotary_factor", 0.5),
    express=lambda config: {"embd_pdrop": config.dropout, "attention_dropout": config.dropout},
    classifier="PhiForSequenceClassification",
)  # fmt: skip


def _opt(document: Document) -> dict[str, Any]:
    width = document.get("word_embed_proj_dim")
    if width is not None and width != document.get("hidden_size", 768):
        raise ValueError(f"word_embed_proj_dim {width!r}: a GPT of gptcli cannot hold it; want hidden_size")
    return {}


OPT = Family(
    architecture="OPTForCausalLM",
    model_type="opt",
    preset="gpt2",
    keys={
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 12),
        "intermediate_size": ("ffn_dim", 3072),
        "context_length": ("max_position_embeddings", 2048),
        "vocab_size": ("vocab_size", 50272),
        "tie_embeddings": ("tie_word_embeddings", True),
        "init_std": ("init_std", 0.02),
        "dropout": ("dropout", 0.1),
    },
    activation_key="activation_function",
    activations={"relu": _ACTIVATIONS["relu"], **_ACTIVATIONS},
    fixed={**_FIXED, "position": "learned", "norm_eps": 1e-5},
    biases={
        "qkv": ("enable_bias", True),
        "projection": ("enable_bias", True),
        "mlp": ("enable_bias", True),
        "norm": True,
    },
    only={"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True},
    names=Names(
        outside={
            "embedding": "model.decoder.embed_tokens",
            "position_embedding": "model.decoder.embed_positions",
            "final_norm": "model.decoder.final_layer_norm",
            "head": "lm_head",
            "label_head": "score",
        },
        block="model.decoder.layers.{}.",
        inside={
            "attention_norm": ("self_attn_layer_norm",),
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.projection": ("self_attn.out_proj",),
            "mlp_norm": ("final_layer_norm",),
            "mlp.up": ("fc1",),
            "mlp.projection": ("fc2",),
        },
        position_offset=2,
    ),
    prefix="model.",
    rope="none",
    derived=_opt,
    express=lambda config: {"word_embed_proj_dim": config.hidden_size, "attention_dropout": config.dropout},
    classifier="OPTForSequenceClassification",
)


def _bloom(document: Document) -> dict[str, Any]:
    context = number_of(document, "seq_length", 2048)  # its positions have no limit
    return {"context_length": int(context)} | ({"hidden_size": document["n_embed"]} if document.get("n_embed") else {})


BLOOM = Family(
    architecture="BloomForCausalLM",
    model_type="bloom",
    preset="gpt2",
    keys={
        "num_layers": ("n_layer", 2),
        "hidden_size": ("hidden_size", 64),
        "num_heads": ("n_head", 8),
        "vocab_size": ("vocab_size", 250880),
        "norm_eps": ("layer_norm_epsilon", 1e-5),
        "tie_embeddings": ("tie_word_embeddings", True),
        "init_std": ("initializer_range", 0.02),
        "dropout": ("hidden_dropout", 0.0),
    },
    activation_key=None,
    activations={"gelu": ("gelu",)},
    fixed={**_FIXED, "position": "alibi", "embedding_norm": True},
    biases=_BIASED,
    only={"apply_residual_connection_post_layernorm": False},
    names=Names(
        outside={
            "embedding": "transformer.word_embeddings",
            "embedding_norm": "transformer.word_embeddings_layernorm",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
            "label_head": "score",
        },
        block="transformer.h.{}.",
        inside={
            "attention_norm": ("input_layernorm",),
            "attention.qkv": ("self_attention.query_key_value",),
            "attention.projection": ("self_attention.dense",),
            "mlp_norm": ("post_attention_layernorm",),
            "mlp.up": ("mlp.dense_h_to_4h",),
            "mlp.projection": ("mlp.dense_4h_to_h",),
        },
        by_head=True,
    ),
    prefix="transformer.",
    rope="none",
    derived=_bloom,
    express=lambda config: {"seq_length": config.context_length, "attention_dropout": config.dropout},
    classifier="BloomForSequenceClassification",
)
