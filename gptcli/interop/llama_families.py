"""Families with the body of Llama: rotary positions, a gated MLP, matrices without biases unless a key says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gptcli.config.model import ModelConfig, shortest_period
from gptcli.interop.family import Biases, Document, Family, list_of, number_of
from gptcli.interop.tensor_names import Names

_KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


def pattern_of(document: Document, default: Iterable[str], window: Any) -> dict[str, Any]:
    """Return sliding_window and attention_pattern from layer_types, or from the default of the class."""
    default = list(default)
    kinds = list_of(document, "layer_types", len(default), tuple(_KINDS)) or default
    if window is None or "sliding_attention" not in kinds:
        return {}
    pattern = shortest_period([_KINDS[kind] for kind in kinds])
    return {"sliding_window": window, "attention_pattern": pattern}


def _full_only(document: Document) -> dict[str, Any]:
    list_of(document, "layer_types", len(layers_of(document, 32)), ("full_attention",))
    return {}


def layers_of(document: Document, default: int) -> range:
    layers = document.get("num_hidden_layers", default)
    return range(layers if isinstance(layers, int) and 0 < layers <= 1000 else 1)  # else its own check speaks


def layer_types(config: ModelConfig) -> list[str]:
    windows = map(config.window, range(config.num_layers))
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


NAMES = Names(
    outside={"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head", "label_head": "score"},
    block="model.layers.{}.",
    inside={
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.projection": ("self_attn.o_proj",),
        "attention.query_norm": ("self_attn.q_norm",),
        "attention.key_norm": ("self_attn.k_norm",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp.up": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.projection": ("mlp.down_proj",),
    },
)

KEYS: Mapping[str, tuple[str, Any]] = {
    "num_layers": ("num_hidden_layers", 32),
    "hidden_size": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", None),
    "intermediate_size": ("intermediate_size", 11008),
    "context_length": ("max_position_embeddings", 2048),
    "vocab_size": ("vocab_size", 32000),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
    "init_std": ("initializer_range", 0.02),
}
HEAD_DIM: Mapping[str, tuple[str, Any]] = {"head_dim": ("head_dim", None)}

FIXED: Mapping[str, Any] = {"norm": "rmsnorm", "norm_weight": True, "embedding_norm": False, "qk_norm": False}

ATTENTION_BIASES: Biases = {"qkv": ("attention_bias", False), "projection": ("attention_bias", False)}
_SILU = {"swiglu": ("silu", "swish")}

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    preset="llama",
    keys={**KEYS, **HEAD_DIM},
    activations=_SILU,
    fixed=FIXED,
    biases={**ATTENTION_BIASES, "mlp": ("mlp_bias", False)},
    names=NAMES,
    prefix="model.",
    derived=_full_only,
    classifier="LlamaForSequenceClassification",
    heads_divide=True,
)

MISTRAL = dataclasses.replace(
    LLAMA,
    architecture="MistralForCausalLM",
    model_type="mistral",
    keys={
        **LLAMA.keys,
        "num_kv_heads": ("num_key_value_heads", 8),
        "intermediate_size": ("intermediate_size", 14336),
        "context_length": ("max_position_embeddings", 131072),
        "sliding_window": ("sliding_window", 4096),
    },
    biases={},
    classifier="MistralForSequenceClassification",
    heads_divide=False,
)


def _qwen_windows(document: Document) -> dict[str, Any]:
    if not document.get("use_sliding_window", False):
        return pattern_of(document, ["full_attention" for _ in layers_of(document, 32)], None)
    first = number_of(document, "max_window_layers", 28)
    default = ["sliding_attention" if layer >= first else "full_attention" for layer in layers_of(document, 32)]
    return pattern_of(document, default, document.get("sliding_window", 4096))


def _qwen_keys(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {}
    kinds = layer_types(config)
    first = kinds.index("sliding_attention") if "sliding_attention" in kinds else config.num_layers
    return {"use_sliding_window": True, "sliding_window": config.sliding_window, "layer_types": kinds,
            "max_window_layers": first}  # fmt: skip


QWEN2 = dataclasses.replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    keys={
        **KEYS,
        "num_kv_heads": ("num_key_value_heads", 32),
        "intermediate_size": ("intermediate_size", 22016),
        "context_length": ("max_position_embeddings", 32768),
        "vocab_size": ("vocab_size", 151936),
    },
    biases={"qkv": True},
    derived=_qwen_windows,
    express=_qwen_keys,
    classifier="Qwen2ForSequenceClassification",
    heads_divide=False,
)

QWEN3 = dataclasses.replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    keys={**QWEN2.keys, "head_dim": ("head_dim", 128)},
    fixed={**FIXED, "qk_norm": True, "qk_norm_weight": True},
    biases=ATTENTION_BIASES,
    classifier="Qwen3ForSequenceClassification",
)

NANOCHAT = dataclasses.replace(
    LLAMA,
    architecture="NanoChatForCausalLM",
    model_type="nanochat",
    preset="modern",
    keys={
        **LLAMA.keys,
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 6),
        "intermediate_size": ("intermediate_size", 8192),
        "vocab_size": ("vocab_size", 50304),
        "logit_softcap": ("final_logit_softcapping", 15.0),
    },
    activations={"relu2": ("relu2",), "gelu": ("gelu_new", "gelu_pytorch_tanh"), "gelu_erf": ("gelu",)},
    # The norm of queries and keys comes after the rotation there, which changes nothing: a rotation keeps the norm.
    fixed={**FIXED, "norm_weight": False, "embedding_norm": True, "qk_norm": True},
    biases=ATTENTION_BIASES,
    names=dataclasses.replace(
        NAMES,
        inside={**NAMES.inside, "mlp.up": ("mlp.fc1",), "mlp.projection": ("mlp.fc2",)},
        rotation="swapped halves",
    ),
    classifier=None,
)


def _smollm3(document: Document) -> dict[str, Any]:
    layers = layers_of(document, 36)
    interval = max(1, int(number_of(document, "no_rope_layer_interval", 4)))
    rotated = list_of(document, "no_rope_layers", len(layers), (0, 1, True, False))
    rotated = rotated or [int((layer + 1) % interval != 0) for layer in layers]
    window = document.get("sliding_window") if document.get("use_sliding_window", False) else None
    default = ["full_attention" if has_rope or window is None else "sliding_attention" for has_rope in rotated]
    pattern = shortest_period(["rope" if has_rope else "none" for has_rope in rotated])
    return {"rope_pattern": pattern, **pattern_of(document, default, window)}


def _smollm3_keys(config: ModelConfig) -> dict[str, Any]:
    document = {"no_rope_layers": [int(config.rotation(layer) != "none") for layer in range(config.num_layers)],
                "layer_types": layer_types(config)}  # fmt: skip
    if config.sliding_window is None:
        return document
    return document | {"use_sliding_window": True, "sliding_window": config.sliding_window}


SMOLLM3 = dataclasses.replace(
    LLAMA,
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    keys={
        **KEYS,
        "num_layers": ("num_hidden_layers", 36),
        "hidden_size": ("hidden_size", 2048),
        "num_heads": ("num_attention_heads", 16),
        "num_kv_heads": ("num_key_value_heads", 4),
        "context_length": ("max_position_embeddings", 32768),
        "vocab_size": ("vocab_size", 128256),
        "tie_embeddings": ("tie_word_embeddings", True),
    },
    rope_theta=("rope_theta", 2000000.0),
    derived=_smollm3,
    express=_smollm3_keys,
    classifier="SmolLM3ForSequenceClassification",
    heads_divide=False,
)


PHI3 = dataclasses.replace(
    LLAMA,
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    keys={
        **KEYS,
        "hidden_size": ("hidden_size", 3072),
        "intermediate_size": ("intermediate_size", 8192),
        "context_length": ("max_position_embeddings", 4096),
        "vocab_size": ("vocab_size", 32064),
        "norm_eps": ("rms_norm_eps", 1e-5),
        "sliding_window": ("sliding_window", None),
    },
    biases={},
    names=dataclasses.replace(
        NAMES,
        inside={**NAMES.inside, "attention.qkv": ("self_attn.qkv_proj",), "mlp.up": ("mlp.gate_up_proj",)},
    ),
    rotary_share=("partial_rotary_factor", 1.0),
    classifier="Phi3ForSequenceClassification",
    heads_divide=False,
)

OLMO = dataclasses.replace(
    LLAMA,
    architecture="OlmoForCausalLM",
    model_type="olmo",
    keys={**{name: key for name, key in KEYS.items() if name != "norm_eps"}, "vocab_size": ("vocab_size", 50304)},
    fixed={**FIXED, "norm": "layernorm_plain", "norm_weight": False, "norm_eps": 1e-5},
    biases=ATTENTION_BIASES,
    only={"clip_qkv": None},
    classifier="OlmoForSequenceClassification",
    heads_divide=False,
)

OLMO2 = dataclasses.replace(
    OLMO,
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    keys={**OLMO.keys, "norm_eps": ("rms_norm_eps", 1e-5)},
    fixed={**FIXED, "norm_placement": "after", "qk_norm": True, "qk_norm_weight": True, "qk_norm_width": "all"},
    only={},
    names=dataclasses.replace(
        NAMES,
        inside={
            **NAMES.inside,
            "attention_post_norm": ("post_attention_layernorm",),
            "mlp_post_norm": ("post_feedforward_layernorm",),
        },
    ),
    classifier="Olmo2ForSequenceClassification",
)


def _granite(document: Document) -> dict[str, Any]:
    return {"logit_scale": 1 / number_of(document, "logits_scaling", 1.0)}


def _granite_keys(config: ModelConfig) -> dict[str, Any]:
    scale = config.head_size**-0.5 if config.attention_scale is None else config.attention_scale
    return {"logits_scaling": 1 / config.logit_scale, "attention_multiplier": scale}


GRANITE = dataclasses.replace(
    LLAMA,
    architecture="GraniteForCausalLM",
    model_type="granite",
    keys={
        **KEYS,
        "embedding_scale": ("embedding_multiplier", 1.0),
        "residual_scale": ("residual_multiplier", 1.0),
        "attention_scale": ("attention_multiplier", 1.0),
    },
    derived=_granite,
    express=_granite_keys,
    classifier=None,
    heads_divide=False,
)

STABLELM = dataclasses.replace(
    LLAMA,
    architecture="StableLmForCausalLM",
    model_type="stablelm",
    keys={
        **KEYS,
        "hidden_size": ("hidden_size", 2560),
        "num_kv_heads": ("num_key_value_heads", 32),
        "intermediate_size": ("intermediate_size", 6912),
        "context_length": ("max_position_embeddings", 4096),
        "vocab_size": ("vocab_size", 50304),
        "norm_eps": ("layer_norm_eps", 1e-5),
        "parallel_block": ("use_parallel_residual", False),
    },
    fixed={**FIXED, "norm": "layernorm", "norm_weight": False},
    biases={"qkv": ("use_qkv_bias", False), "norm": True},
    only={"qk_layernorm": False},
    rotary_share=("partial_rotary_factor", 0.25),
    derived=lambda document: {"shared_norm": document.get("use_parallel_residual", False)},
    classifier="StableLmForSequenceClassification",
    heads_divide=False,
)

STARCODER2 = dataclasses.replace(
    LLAMA,
    architecture="Starcoder2ForCausalLM",
    model_type="starcoder2",
    keys={
        **KEYS,
        "num_layers": ("num_hidden_layers", 30),
        "hidden_size": ("hidden_size", 3072),
        "num_heads": ("num_attention_heads", 24),
        "num_kv_heads": ("num_key_value_heads", 2),
        "intermediate_size": ("intermediate_size", 12288),
        "context_length": ("max_position_embeddings", 4096),
        "vocab_size": ("vocab_size", 49152),
        "norm_eps": ("norm_epsilon", 1e-5),
        "tie_embeddings": ("tie_word_embeddings", True),
        "sliding_window": ("sliding_window", None),
    },
    activations={"gelu": ("gelu_pytorch_tanh", "gelu_new"), "gelu_erf": ("gelu",)},
    fixed={**FIXED, "norm": "layernorm", "norm_weight": False},
    biases={"qkv": ("use_bias", True), "projection": ("use_bias", True), "mlp": ("use_bias", True), "norm": True},
    names=dataclasses.replace(
        NAMES, inside={**NAMES.inside, "mlp.up": ("mlp.c_fc",), "mlp.projection": ("mlp.c_proj",)}
    ),
    classifier="Starcoder2ForSequenceClassification",
    heads_divide=False,
)
