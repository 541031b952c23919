"""The `model` section of a run file, with the shapes of the presets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from gptcli.config.schema import Section, number, value

T = TypeVar("T")
AttentionKind = Literal["full", "sliding"]
GATED = ("swiglu", "geglu", "geglu_erf")
PARTS = ("qkv", "projection", "mlp", "norm")  # that have biases


def _gpt2(num_layers: int, num_heads: int, hidden_size: int, context_length: int) -> dict[str, Any]:
    """Return the fields of a GPT-2 shaped model (Radford et al. 2019), which transformers loads as GPT2LMHeadModel."""
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


def shortest_period(pattern: Sequence[T]) -> tuple[T, ...]:
    """Return the shortest beginning of a non-empty pattern that, repeated and cut, is the whole of it."""
    for length in range(1, len(pattern)):
        if all(pattern[place] == pattern[place % length] for place in range(len(pattern))):
            return tuple(pattern[:length])
    return tuple(pattern)


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
class RopeScaling(Section):
    """The change of rotary frequencies for contexts longer than those of the first training."""

    kind: Literal["none", "linear", "llama3", "yarn"] = value("none", "linear (Chen et al. 2023), llama3, or yarn")
    factor: float = number(1.0, "divide rotary frequencies by this; llama3 and yarn: the low ones only", gt=0, le=1e6)
    original_context: int | None = number(None, "llama3 and yarn: context length before scaling", ge=2, le=1 << 24)
    low_frequency_factor: float = number(
        1.0, "llama3: scale frequencies with up to this many turns in the original context", gt=0, le=1e6
    )
    high_frequency_factor: float = number(4.0, "llama3: keep frequencies from this many turns on", gt=0, le=1e6)
    fast_turns: float = number(32.0, "yarn: keep frequencies from this many turns on (beta_fast)", gt=0, le=1e6)
    slow_turns: float = number(1.0, "yarn: scale frequencies with up to this many turns (beta_slow)", gt=0, le=1e6)
    whole_dimensions: bool = value(True, "yarn: round both limits outwards to whole dimensions")
    attention_factor: float | None = number(
        None, "yarn: multiply rotated queries and keys by this; null: 0.1 ln(factor) + 1", gt=0, le=1e3
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind in ("llama3", "yarn") and self.original_context is None:
            yield "original_context", f"rope_scaling of kind {self.kind} needs it; set it"
        if self.kind == "llama3" and self.high_frequency_factor <= self.low_frequency_factor:
            yield "high_frequency_factor", f"must be above low_frequency_factor {self.low_frequency_factor}"
        if self.attention_factor is not None and self.kind != "yarn":
            yield "attention_factor", "is for yarn; remove it"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Section):
    """Shape and options of the GPT. The defaults are the `modern` preset, representable as NanoChatForCausalLM.

    Options of other families are off by default; interop.families says which family has which.
    """

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
    norm: Literal["rmsnorm", "layernorm", "layernorm_plain"] = value(
        "rmsnorm", "normalization: RMSNorm, LayerNorm, or LayerNorm without scale and bias"
    )
    norm_weight: bool = value(False, "learned scale in RMSNorm (LayerNorm always has one)")
    norm_eps: float = number(1e-6, "epsilon of every normalization", gt=0, le=0.1)
    norm_placement: Literal["before", "after", "both"] = value(
        "before", "normalize each sub-layer's input, its output (as in OLMo 2) or both (as in Gemma 2)"
    )
    embedding_norm: bool = value(True, "normalize the embeddings before the first block")
    embedding_scale: float = number(1.0, "multiply the embeddings by this", gt=0, le=1e4)
    position: Literal["rope", "learned", "alibi"] = value(
        "rope", "rotary embeddings (Su et al. 2021), learned ones, or ALiBi (Press et al. 2022)"
    )
    rope_theta: float = number(10000.0, "base of the rotary frequencies", gt=1, le=1e9)
    rope_local_theta: float | None = number(
        None, "rope_theta of sliding-window layers, which rope_scaling leaves alone; null: rope_theta", gt=1, le=1e9
    )
    rope_pattern: tuple[Literal["rope", "none"], ...] = value(
        ("rope",), "which layers rotate queries and keys, repeated over the layers"
    )
    rotary_dim: int | None = number(None, "dimensions of a head that are rotated; null: all", ge=2, le=1024)
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    activation: Literal["relu2", "relu", "silu", "gelu", "gelu_erf", "gelu_sigmoid", "swiglu", "geglu", "geglu_erf"] = (
        value(
            "relu2",
            "MLP activation: squared ReLU, ReLU, SiLU, GELU (tanh, exact, x sigmoid(1.702x)), or gated SiLU or GELU",
        )
    )
    bias: bool = value(False, "biases in linear layers and LayerNorm")
    qkv_bias: bool | None = value(None, "biases of queries, keys and values; null: bias")
    projection_bias: bool | None = value(None, "bias of attention's output projection; null: bias")
    mlp_bias: bool | None = value(None, "biases of the MLP; null: bias")
    norm_bias: bool | None = value(None, "biases of LayerNorm; null: bias")
    head_bias: bool = value(False, "bias of the output head")
    tie_embeddings: bool = value(False, "share the embedding matrix with the output head")
    bigram_rows: int = number(
        0,
        "rows of a second embedding, of hashed pairs of tokens, such as 5 x the vocabulary; 0: none",
        ge=0,
        le=1 << 30,
        auto=True,
    )
    parallel_block: bool = value(False, "let attention and MLP read the same input, and add both to it")
    shared_norm: bool = value(False, "share one norm between attention and MLP of a parallel block")
    residual_scale: float = number(1.0, "multiply the output of each sub-layer by this", gt=0, le=1e4)
    qk_norm: bool = value(True, "RMSNorm on the queries and keys of each head")
    qk_norm_weight: bool = value(False, "learned scales in qk_norm, as in Qwen3")
    qk_norm_width: Literal["head", "all"] = value("head", "apply qk_norm to each head, or across all heads (OLMo 2)")
    attention_scale: float | None = number(
        None, "multiply queries times keys by this; null: 1 / sqrt(head width)", gt=0, le=1e4
    )
    attention_scale_by_layer: bool = value(False, "also divide queries times keys by the layer's number, from 1")
    attention_softcap: float = number(0.0, "scores = cap x tanh(scores / cap) before softmax; 0: off", ge=0, le=1e4)
    sliding_window: int | None = number(
        None, "tokens that a sliding-window layer attends to, itself included; null: all", ge=1, le=1 << 24
    )
    attention_pattern: tuple[AttentionKind, ...] = value(
        ("sliding",), "full or sliding-window attention, repeated over the layers, where sliding_window is set"
    )
    logit_scale: float = number(1.0, "multiply the logits by this", gt=0, le=1e4)
    logit_softcap: float = number(0.0, "logits = cap x tanh(logits / cap); 0: off", ge=0, le=1000)
    zero_init_projections: bool = value(True, "initialize projections into the residual stream to zero")
    init_std: float | None = number(
        None, "standard deviation of initial weights; null: uniform by 1/sqrt(fan-in)", gt=0, le=10
    )
    dropout: float = number(0.0, "dropout rate on embeddings, attention weights and sub-layer outputs", ge=0, lt=1)

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
        return -(-self.hidden_size * 8 // 3 // 64) * 64 if self.gated else 4 * self.hidden_size

    @property
    def gated(self) -> bool:
        """Return whether the MLP multiplies its hidden layer by an activated gate."""
        return self.activation in GATED

    def biased(self, part: str) -> bool:
        """Return whether a part (qkv, projection, mlp or norm) has biases."""
        given: bool | None = getattr(self, f"{part}_bias")
        return self.bias if given is None else given

    def window(self, layer: int) -> int | None:
        """Return how many tokens a token of the layer sees, itself among them; None: all before it."""
        kind = self.attention_pattern[layer % len(self.attention_pattern)]
        return self.sliding_window if kind == "sliding" else None

    def rotation(self, layer: int) -> Literal["none", "rope", "local"]:
        """Return which of the two rotations the layer has, if one."""
        if self.position != "rope" or self.rope_pattern[layer % len(self.rope_pattern)] == "none":
            return "none"
        return "local" if self.rope_local_theta is not None and self.window(layer) is not None else "rope"

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelConfig:
        """Return the config that dataclasses.asdict gave as JSON; ConfigError or TypeError where it is none."""
        values: dict[str, Any] = {
            name: tuple(given) if isinstance(given, list) else given for name, given in document.items()
        }
        if "rope_scaling" in values:
            values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
        return cls(**values)

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
        if self.norm != "rmsnorm" and self.norm_weight:
            yield "norm_weight", "is for rmsnorm; LayerNorm always has a weight; remove it"
        if self.qk_norm_weight and not self.qk_norm:
            yield "qk_norm_weight", "needs qk_norm; set that too or remove it"
        yield from self._problems_of_options()

    def _problems_of_options(self) -> Iterator[tuple[str, str]]:
        """Yield (field, problem) of options that need or exclude another one."""
        rotated = self.rotary_dim or self.head_size
        if rotated > self.head_size or rotated % 2:
            yield "rotary_dim", f"must be even and at most the head width {self.head_size}, got {rotated}"
        if self.shared_norm and not self.parallel_block:
            yield "shared_norm", "is for parallel_block; set that too or remove it"
        if self.parallel_block and self.norm_placement != "before":
            yield "norm_placement", "parallel_block has its norms before the sub-layers; remove one of both"
        if self.head_bias and self.tie_embeddings:
            yield "head_bias", "a tied head has none; remove one of both"
        for name in ("attention_pattern", "rope_pattern"):
            if not getattr(self, name):
                yield name, "is empty; name at least one layer's kind"
        if self.norm_bias and self.norm != "layernorm":
            yield "norm_bias", f"is for layernorm; norm is {self.norm}"
