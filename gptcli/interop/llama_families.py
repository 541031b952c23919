"""Families with the body of Llama: rotary positions, a gated MLP, matrices without biases unless a key says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from gptcli.config.model import ModelConfig, shortest_period
from gptcli.interop.family import Biases, Document, Family, list_of, number_of
from gptcli.interop.names import Names

_KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


def _pattern(document: Document, default: Iterable[str], window: Any) -> dict[str, Any]:
    """sliding_window and attention_pattern from layer_types, or from the default of the class."""
    default = list(default)
    kinds = list_of(document, "layer_types", len(default), tuple(_KINDS)) or default
    if window is None or "sliding_attention" not in kinds:
        return {}
    pattern = shortest_period([_KINDS[kind] for kind in kinds])
    return {"sliding_window": window, "attention_pattern": pattern}


def _full_only(document: Document) -> dict[str, Any]:
    list_of(document, "layer_types", len(_layers(document, 32)), ("full_attention",))
    return {}


def _layers(document: Document, default: int) -> range:
    layers = document.get("num_hidden_layers", default)
    return range(layers if isinstance(layers, int) and 0 < layers <= 1000 else 1)  # else its own check speaks


def _layer_types(config: ModelConfig) -> list[str]:
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

_ATTENTION_BIASES: Biases = {"qkv": ("attention_bias", False), "projection": ("attention_bias", False)}
_SILU = {"swiglu": ("silu", "swish")}

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    preset="llama",
    keys={**KEYS, **HEAD_DIM},
    activations=_SILU,
    fixed=FIXED,
    biases={**_ATTENTION_BIASES, "mlp": ("mlp_bias", False)},
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
        return _pattern(document, ["full_attention" for _ in _layers(document, 32)], None)
    first = number_of(document, "max_window_layers", 28)
    default = ["sliding_attention" if layer >= first else "full_attention" for layer in _layers(document, 32)]
    return _pattern(document, default, document.get("sliding_window", 4096))


def _qwen_keys(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {}
    kinds = _layer_types(config)
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
    biases=_ATTENTION_BIASES,
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
    biases=_ATTENTION_BIASES,
    names=dataclasses.replace(
        NAMES,
        inside={**NAMES.inside, "mlp.up": ("mlp.fc1",), "mlp.projection": ("mlp.fc2",)},
        rotation="swapped halves",
    ),
    classifier=None,
)


def _smollm3(document: Document) -> dict[str, Any]:
    layers = _layers(document, 36)
    interval = max(1, int(number_of(document, "no_rope_layer_interval", 4)))
    rotated = list_of(document, "no_rope_layers", len(layers), (0, 1, True, False))
    rotated = rotated or [int((layer + 1) % interval != 0) for layer in layers]
    window = document.get("sliding_window") if document.get("use_sliding_window", False) else None
    default = ["full_attention" if has_rope or window is None else "sliding_attention" for has_rope in rotated]
    pattern = shortest_period(["rope" if has_rope else "none" for has_rope in rotated])
    return {"rope_pattern": pattern, **_pattern(document, default, window)}


def _smollm3_keys(config: ModelConfig) -> dict[str, Any]:
    document = {"no_rope_layers": [int(config.rotation(layer) != "none") for layer in range(config.num_layers)],
                "layer_types": _layer_types(config)}  # fmt: skip
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
    biases=_ATTENTION_BIASES,
    only={"use_bidirectional_attention": None},
    names=dataclasses.replace(NAMES, norm_offset=1.0),
    derived=_gemma,
    classifier="GemmaForSequenceClassification",
    heads_divide=False,
)


def _gemma2(document: Document) -> dict[str, Any]:
    default = ["full_attention" if layer % 2 else "sliding_attention" for layer in _layers(document, 26)]
    return {
        "embedding_scale": number_of(document, "hidden_size", 2304) ** 0.5,
        "attention_scale": number_of(document, "query_pre_attn_scalar", 256) ** -0.5,
        **_pattern(document, default, document.get("sliding_window", 4096)),
    }


def _gemma2_keys(config: ModelConfig) -> dict[str, Any]:
    scalar = config.head_size if config.attention_scale is None else config.attention_scale**-2
    whole = round(scalar)
    return {
        "query_pre_attn_scalar": whole if abs(scalar - whole) < 1e-9 * scalar else scalar,
        "sliding_window": config.sliding_window or config.context_length,
        "layer_types": _layer_types(config),
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
    default = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in _layers(document, 26)]
    return {**_gemma2(document), **_pattern(document, default, document.get("sliding_window", 4096))}


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
    biases=_ATTENTION_BIASES,
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
