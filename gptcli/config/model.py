"""The `model` section of a run file, with the shapes of the presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gptcli.config.schema import Section, number, value


def _gpt2(num_layers: int, num_heads: int, hidden_size: int, context_length: int) -> dict[str, Any]:
    """Values of a GPT-2 shaped model (Radford et al. 2019), as GPT2LMHeadModel holds it."""
    return {
        "num_layers": num_layers,
        "num_heads": num_heads,
        "hidden_size": hidden_size,
        "context_length": context_length,
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "embedding_norm": False,
        "position": "learned",
        "activation": "gelu",
        "bias": True,
        "tie_embeddings": True,
        "qk_norm": False,
        "logit_softcap": 0.0,
        "zero_init_projections": False,
        "init_std": 0.02,
    }


MAX_ROTARY = 1 << 27  # numbers in a rotary table: a million positions of heads 128 wide, half a GiB

GPT3_SIZES: Mapping[str, tuple[int, int, int]] = {
    # Brown et al. 2020, table 2.1: layers, heads, width. Two rows of the table contradict themselves and are taken
    # so that heads x head width = width, which the stated parameter counts bear out: XL prints 24 heads of 128 for a
    # width of 2048 (16 here), and 13B prints a width of 5140 for 40 heads of 128 (5120 here).
    "125m": (12, 12, 768),
    "350m": (24, 16, 1024),
    "760m": (24, 16, 1536),
    "1.3b": (24, 16, 2048),
    "2.7b": (32, 32, 2560),
    "6.7b": (32, 32, 4096),
    "13b": (40, 40, 5120),
    "175b": (96, 96, 12288),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Section):
    """Shape and options of the GPT. The defaults are the `modern` preset, representable as NanoChatForCausalLM."""

    preset: str = value("modern", "named values for the fields below: modern, gpt2, gpt3-125m..gpt3-175b, llama")
    num_layers: int = number(4, "transformer blocks", ge=1, le=1000, auto="size")
    hidden_size: int = number(128, "width of the residual stream", ge=8, le=65536, auto="size")
    num_heads: int = number(4, "attention heads (queries)", ge=1, le=1024, auto="size")
    num_kv_heads: int | None = number(None, "key/value heads; null: num_heads", ge=1, le=1024)
    head_dim: int | None = number(None, "width of a head; null: hidden_size / num_heads", ge=2, le=1024, auto="size")
    intermediate_size: int | None = number(
        None,
        "hidden width of the MLP; null: 4 x hidden_size (swiglu: 8/3 x, rounded up to a multiple of 64)",
        ge=1,
        le=262144,
        auto="size",
    )
    context_length: int = number(256, "longest sequence in tokens", ge=2, le=1 << 20, auto=True)
    vocab_size: int | None = number(None, "rows of the embedding; null: the tokenizer's vocabulary", ge=2, le=1 << 22)
    norm: Literal["rmsnorm", "layernorm"] = value("rmsnorm", "normalization before each sub-layer and the head")
    norm_weight: bool = value(False, "learned scale in RMSNorm (LayerNorm always has one)")
    norm_eps: float = number(1e-6, "epsilon of every normalization", gt=0, le=0.1)
    embedding_norm: bool = value(True, "normalize the embeddings before the first block")
    position: Literal["rope", "learned"] = value(
        "rope", "rotary (Su et al. 2021) or learned absolute position embeddings"
    )
    rope_theta: float = number(10000.0, "base of the rotary frequencies", gt=1, le=1e9)
    activation: Literal["relu2", "gelu", "gelu_erf", "swiglu"] = value(
        "relu2", "of the MLP: squared ReLU, GELU (tanh approximation or exact) or SwiGLU"
    )
    bias: bool = value(False, "biases in linear layers and LayerNorm")
    tie_embeddings: bool = value(False, "share the embedding matrix with the output head")
    qk_norm: bool = value(True, "RMSNorm on the queries and keys of each head")
    qk_norm_weight: bool = value(False, "learned scales in that norm, as in Qwen3")
    logit_softcap: float = number(0.0, "logits = cap x tanh(logits / cap); 0: off", ge=0, le=1000)
    zero_init_projections: bool = value(True, "initialize projections into the residual stream to zero")
    init_std: float | None = number(
        None, "standard deviation of initial weights; null: uniform by 1/sqrt(fan-in)", gt=0, le=10
    )
    dropout: float = number(
        0.0, "dropout rate on embeddings, attention weights and sub-layer outputs", ge=0, lt=1, repeated=0.1
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "modern": {},
        "gpt2": _gpt2(12, 12, 768, 1024),
        "gpt2-medium": _gpt2(24, 16, 1024, 1024),
        "gpt2-large": _gpt2(36, 20, 1280, 1024),
        "gpt2-xl": _gpt2(48, 25, 1600, 1024),
        **{f"gpt3-{name}": _gpt2(*shape, 2048) for name, shape in GPT3_SIZES.items()},
        "llama": {
            "norm_weight": True,
            "norm_eps": 1e-5,
            "embedding_norm": False,
            "activation": "swiglu",
            "qk_norm": False,
            "logit_softcap": 0.0,
            "zero_init_projections": False,
            "init_std": 0.02,
        },
    }

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        if self.intermediate_size:
            return self.intermediate_size
        return -(-self.hidden_size * 8 // 3 // 64) * 64 if self.activation == "swiglu" else 4 * self.hidden_size

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.head_dim is None and self.hidden_size % self.num_heads:
            yield "num_heads", f"{self.num_heads} heads do not divide hidden_size {self.hidden_size}; set head_dim"
        elif self.position == "rope" and self.head_size % 2:
            yield "head_dim", f"rotary positions need an even head width, got {self.head_size}"
        elif self.position == "rope" and self.context_length * self.head_size > MAX_ROTARY:
            most = MAX_ROTARY // self.head_size
            yield (
                "context_length",
                f"rotary positions of heads {self.head_size} wide reach to {most}; lower one of both",
            )
        if self.num_heads % self.kv_heads:
            yield "num_kv_heads", f"{self.kv_heads} does not divide num_heads {self.num_heads}"
        if self.norm == "layernorm" and self.norm_weight:
            yield "norm_weight", "is for rmsnorm; LayerNorm always has a weight; remove it"
        if self.qk_norm_weight and not self.qk_norm:
            yield "qk_norm_weight", "needs qk_norm; set that too or remove it"
