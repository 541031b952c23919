"""The classes of transformers that model.GPT can hold: each a table of config keys and tensor names, read both ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptcli.config.model import ModelConfig
from gptcli.interop.names import LINEARS, Names


@dataclass(frozen=True, kw_only=True)
class Family:
    """A class of transformers, and what its config.json and tensors mean to model.GPT."""

    architecture: str
    model_type: str
    preset: str  # of ours that it is nearest to
    keys: Mapping[str, tuple[str, Any]]  # a field of ours -> its key, and the class's default for it
    activation_key: str
    activations: Mapping[str, tuple[str, ...]]  # ours -> its names there; the first of all is the class's default
    holds: Mapping[str, tuple[Any, ...]]  # a field of ours without a key -> values that fit, the class's own first
    biases: Mapping[str, str | bool]  # a linear layer -> whether it has a bias there, or the key that says so
    only: Mapping[str, Any]  # a key without a field of ours -> the one value that model.GPT can hold, its default
    names: Names
    prefix: str  # of the tensor names; some files have dropped it
    classifier: str | None  # the class of the same body with a head on the last token

    @property
    def rotary(self) -> bool:
        return "rope" in self.holds["position"]

    def whole(self, config: ModelConfig) -> ModelConfig:
        """The config as the class sees it: with the weights and biases that it always has."""
        return dataclasses.replace(config, **{name: values[0] for name, values in self.holds.items()})


_LLAMA_NAMES = Names(
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

_LLAMA_KEYS: Mapping[str, tuple[str, Any]] = {
    "num_layers": ("num_hidden_layers", 32),
    "hidden_size": ("hidden_size", 4096),
    "num_heads": ("num_attention_heads", 32),
    "num_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "intermediate_size": ("intermediate_size", 11008),
    "context_length": ("max_position_embeddings", 2048),
    "vocab_size": ("vocab_size", 32000),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
    "init_std": ("initializer_range", 0.02),
}

_PLAIN: Mapping[str, tuple[Any, ...]] = {  # what GPT-2 and Llama both do without
    "norm_weight": (False,),
    "embedding_norm": (False,),
    "qk_norm": (False,),
    "qk_norm_weight": (False,),
    "logit_softcap": (0.0,),
}

_LLAMA_HOLDS = {**_PLAIN, "norm": ("rmsnorm",), "norm_weight": (True, False), "position": ("rope",)}

_GELUS = {"gelu": ("gelu_new", "gelu_pytorch_tanh"), "gelu_erf": ("gelu",)}

_ATTENTION_BIASES: Mapping[str, str | bool] = dict.fromkeys(LINEARS[:2], "attention_bias")

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
    },
    activation_key="activation_function",
    activations={**_GELUS, "relu2": ("relu2",)},
    holds={**_PLAIN, "norm": ("layernorm",), "position": ("learned",), "bias": (True, False)},
    biases=dict.fromkeys(LINEARS, True),
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
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
    classifier="GPT2ForSequenceClassification",
)

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    preset="llama",
    keys=_LLAMA_KEYS,
    activation_key="hidden_act",
    activations={"swiglu": ("silu", "swish")},
    holds=_LLAMA_HOLDS,
    biases={**_ATTENTION_BIASES, **dict.fromkeys(LINEARS[2:], "mlp_bias")},
    only={},
    names=_LLAMA_NAMES,
    prefix="model.",
    classifier="LlamaForSequenceClassification",
)

QWEN2 = dataclasses.replace(  # read only: as a Llama with biases it is exact, so that is how it goes out
    LLAMA,
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    keys={
        **_LLAMA_KEYS,
        "num_kv_heads": ("num_key_value_heads", 32),
        "intermediate_size": ("intermediate_size", 22016),
        "context_length": ("max_position_embeddings", 32768),
        "vocab_size": ("vocab_size", 151936),
    },
    biases={"attention.qkv": True},
    only={"use_sliding_window": False},
)

QWEN3 = dataclasses.replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    keys={**QWEN2.keys, "head_dim": ("head_dim", 128)},
    holds={**_LLAMA_HOLDS, "qk_norm": (True,), "qk_norm_weight": (True, False)},
    biases=_ATTENTION_BIASES,
    classifier="Qwen3ForSequenceClassification",
)

NANOCHAT = Family(
    architecture="NanoChatForCausalLM",
    model_type="nanochat",
    preset="modern",
    keys={
        **_LLAMA_KEYS,
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 6),
        "intermediate_size": ("intermediate_size", 8192),
        "vocab_size": ("vocab_size", 50304),
        "logit_softcap": ("final_logit_softcapping", 15.0),
    },
    activation_key="hidden_act",
    activations={"relu2": ("relu2",), **_GELUS},
    holds={
        "norm": ("rmsnorm",),
        "norm_weight": (False,),
        "embedding_norm": (True,),
        "position": ("rope",),
        "qk_norm": (True,),  # after the rotation there, which changes nothing: a rotation keeps the norm
        "qk_norm_weight": (False,),
    },
    biases=_ATTENTION_BIASES,
    only={},
    names=dataclasses.replace(
        _LLAMA_NAMES,
        inside={**_LLAMA_NAMES.inside, "mlp.up": ("mlp.fc1",), "mlp.projection": ("mlp.fc2",)},
        rotation="swapped halves",
    ),
    prefix="model.",
    classifier=None,
)

FAMILIES = {family.architecture: family for family in (GPT2, LLAMA, QWEN3, NANOCHAT, QWEN2)}
