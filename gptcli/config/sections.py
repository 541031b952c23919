"""The sections of a run file, as frozen dataclasses: the only place where a default lives. Standard library only.

`number(...)` declares a field with its bounds; `Section.__post_init__` checks type, bounds and relations, so that a
section made in Python is held to the same rules as one read from a file. `configfile` adds file, line and origin.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from gptcli.base.errors import ConfigError
from gptcli.base.units import seconds_of


def number(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """A numeric field with its open (gt, lt) or closed (ge, le) bounds and one line of documentation."""
    return field(default=default, metadata={"doc": doc, "gt": gt, "ge": ge, "lt": lt, "le": le})


def value(default: Any = dataclasses.MISSING, doc: str = "") -> Any:
    """Any other field, with one line of documentation."""
    return field(default=default, metadata={"doc": doc})


def bounds_problem(declared: dataclasses.Field[Any], given: Any) -> str | None:
    """Why a number is out of its field's bounds, or None. A NaN is outside of every bound."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return None
    meta = declared.metadata
    if isinstance(given, float) and not math.isfinite(given):
        return f"must be a finite number, got {given}"
    comparisons = (
        ("gt", ">", operator.gt),
        ("ge", ">=", operator.ge),
        ("lt", "<", operator.lt),
        ("le", "<=", operator.le),
    )
    wanted = [
        f"{sign} {meta[key]}"
        for key, sign, holds in comparisons
        if meta.get(key) is not None and not holds(given, meta[key])
    ]
    return f"must be {' and '.join(wanted)}, got {given}" if wanted else None


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    """The types of a section's fields, those of their unions listed."""
    hints, unions = typing.get_type_hints(section), (types.UnionType, typing.Union)
    own = {field.name: hints[field.name] for field in dataclasses.fields(section)}
    return {name: typing.get_args(h) if typing.get_origin(h) in unions else (h,) for name, h in own.items()}


_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}


def type_problem(hints: tuple[Any, ...], given: Any) -> str | None:
    """Why a value has none of a field's types, or None."""
    if any(_fits(given, hint) for hint in hints):
        return None
    if typing.get_origin(hints[0]) is Literal:
        return f"must be one of {', '.join(typing.get_args(hints[0]))}, got {given!r}"
    return f"must be {' or '.join(_KINDS.get(hint, str(hint)) for hint in hints)}, got {given!r}"


def _fits(given: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return given in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(given, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in given)
    if hint in (int, float):
        return isinstance(given, (int, hint)) and not isinstance(given, bool)
    return isinstance(given, hint)


class Section:
    """Base of every section: bounds and relations are checked when one is made.

    `presets` maps a name to field values that stand in for the defaults where the section's `preset` field has that
    name; values given explicitly win over them. `problems` yields (field name, message) for broken relations.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    __slots__ = ()

    def __init__(self, **values: Any) -> None:
        """Stated for type checkers only: dataclass makes each section its own."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        found = []
        section: type = type(self)
        hints = _hints(section)
        for declared in dataclasses.fields(self):  # type: ignore[arg-type]
            given = getattr(self, declared.name)
            if problem := type_problem(hints[declared.name], given) or bounds_problem(declared, given):
                found.append(f"{declared.name}: {problem}")
        found = found or [f"{name}: {problem}" for name, problem in self.problems()]
        if found:
            raise ConfigError(*found)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Relations between fields that do not hold, as (field name, message)."""
        yield from ()

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Any:
        """The section that `preset: NAME` makes, with explicit changes on top."""
        return cls(preset=preset, **{**cls.presets[preset], **changes})


def is_name(path: str | None) -> bool:
    """Whether a file or directory may have this name."""
    return path is None or ("\0" not in path and bool(path.strip()))


# ------------------------------------------------------------------------------------------------------ the model


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
    num_layers: int = number(4, "transformer blocks", ge=1, le=1000)
    hidden_size: int = number(128, "width of the residual stream", ge=8, le=65536)
    num_heads: int = number(4, "query heads", ge=1, le=1024)
    num_kv_heads: int | None = number(None, "key and value heads, null: as many as query heads", ge=1, le=1024)
    head_dim: int | None = number(None, "width of a head, null: hidden_size / num_heads", ge=2, le=1024)
    intermediate_size: int | None = number(
        None, "hidden width of the MLP, null: 4 x hidden_size (swiglu: 8/3 x, up to a multiple of 64)", ge=1, le=262144
    )
    context_length: int = number(256, "longest window of tokens the model sees", ge=2, le=1 << 20)
    vocab_size: int | None = number(None, "rows of the embedding, null: the tokenizer's size", ge=2, le=1 << 22)
    norm: Literal["rmsnorm", "layernorm"] = value("rmsnorm", "normalisation before each sub-layer and the head")
    norm_weight: bool = value(False, "learned scale in RMSNorm (LayerNorm always has one)")
    norm_eps: float = number(1e-6, "epsilon of every normalisation", gt=0, le=0.1)
    embedding_norm: bool = value(True, "normalise the embeddings before the first block")
    position: Literal["rope", "learned"] = value("rope", "rotary (Su et al. 2021) or learned absolute positions")
    rope_theta: float = number(10000.0, "base of the rotary frequencies", gt=1, le=1e9)
    activation: Literal["relu2", "gelu", "gelu_erf", "swiglu"] = value(
        "relu2", "MLP: squared ReLU, GELU (tanh form, or exact) or SwiGLU"
    )
    bias: bool = value(False, "biases in linear layers and LayerNorm")
    tie_embeddings: bool = value(False, "the head shares the embedding matrix")
    qk_norm: bool = value(True, "RMSNorm on queries and keys of each head")
    qk_norm_weight: bool = value(False, "learned scales in that norm, one for queries and one for keys, as in Qwen3")
    logit_softcap: float = number(0.0, "logits = cap x tanh(logits / cap); 0 is off", ge=0, le=1000)
    zero_init_projections: bool = value(True, "projections back into the residual stream start at zero")
    init_std: float | None = number(None, "std of every initial weight, null: 1/sqrt(fan-in) uniform", gt=0, le=10)
    dropout: float = number(0.0, "on embeddings, attention weights and sub-layer outputs", ge=0, lt=1)

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
        if self.preset not in self.presets:
            yield "preset", f"no preset {self.preset!r}; there are {', '.join(self.presets)}"
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


# ----------------------------------------------------------------------------------------------- data and tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Section):
    """What is learnt from: files, directories, globs, or one directory made by `gptcli prepare`."""

    train: tuple[str, ...] = value(doc="text, JSONL (.gz too), directories, globs, or a prepared directory")
    validation: tuple[str, ...] = value((), "held-out inputs; empty: a part of `train` is held out")
    validation_fraction: float = number(0.05, "share of `train` held out where `validation` is empty", ge=0, lt=1)
    validation_split: Literal["tail", "document"] = value(
        "tail", "hold out the last bytes of the corpus, or documents drawn by a hash of their number"
    )
    field: str = value("text", "JSONL field that holds the text")
    encoding: str = value("utf-8", "encoding of the text")
    errors: Literal["strict", "replace", "ignore"] = value("strict", "what to do with undecodable bytes")
    cache_dir: str | None = value(None, "where prepared data are kept, null: $XDG_CACHE_HOME/gptcli")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.train:
            yield "train", "no input; name a file"
        if not is_name(self.cache_dir):
            yield "cache_dir", "must name a directory"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(Section):
    """The tokenizer: a file, or how to train one on the training text."""

    path: str | None = value(None, "a tokenizer.json; null: train one on the training text")
    vocab_size: int = number(4096, "tokens of a trained vocabulary, specials included", ge=257, le=1 << 20)
    pattern: Literal["gpt2", "llama3", "qwen2"] = value("gpt2", "split pattern of a trained tokenizer")
    max_bytes: int | None = number(200_000_000, "train on at most so many bytes, sampled evenly", ge=1)


# ------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(Section):
    """Optimizer and learning-rate schedule. Rates are peaks; the schedule scales all of them together."""

    preset: str = value("modern", "named values for the fields below: modern (Muon + AdamW), classic (AdamW), finetune")
    name: Literal["muon", "adamw"] = value("muon", "optimizer of the matrices inside the blocks; AdamW has the rest")
    learning_rate: float = number(6e-3, "peak AdamW rate", gt=0, le=10)
    embedding_learning_rate: float | None = number(0.3, "peak rate of the embedding, null: learning_rate", gt=0, le=100)
    muon_learning_rate: float = number(0.02, "peak Muon rate of the matrices", gt=0, le=10)
    muon_momentum: float = number(0.95, "Nesterov momentum of Muon", ge=0, lt=1)
    muon_overhead: float = number(
        0.1,
        "FLOPs of Muon relative to the model's in a step, at most: in parts of matrices where whole ones cost more",
        gt=0,
        le=1e9,
    )
    beta1: float = number(0.9, "AdamW", ge=0, lt=1)
    beta2: float = number(0.99, "AdamW", ge=0, lt=1)
    eps: float = number(1e-10, "AdamW", gt=0, le=1)
    weight_decay: float = number(0.0, "decoupled decay of matrices (vectors and embeddings have none)", ge=0, le=10)
    grad_clip_norm: float = number(0.0, "clip the gradient's global L2 norm; 0 is off", ge=0, le=1e9)
    schedule: Literal["linear", "cosine", "constant"] = value("linear", "form of the decay after warm-up")
    warmup_steps: int = number(0, "linear rise from zero", ge=0)
    decay_fraction: float = number(0.7, "last part of the run in which the rate decays", ge=0, le=1)
    final_learning_rate_fraction: float = number(0.0, "rate at the end, relative to the peak", ge=0, le=1)

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "modern": {},
        "classic": {  # Brown et al. 2020, appendix B
            "name": "adamw",
            "learning_rate": 6e-4,
            "embedding_learning_rate": None,
            "beta2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "grad_clip_norm": 1.0,
            "schedule": "cosine",
            "decay_fraction": 1.0,
            "final_learning_rate_fraction": 0.1,
        },
        "finetune": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "embedding_learning_rate": None,
            "beta2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "grad_clip_norm": 1.0,
            "decay_fraction": 1.0,
        },
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Section):
    """How long, in what batches, and what happens on the way. Counted in optimizer steps and tokens."""

    budget: str | None = value(None, "wall clock of the whole command (90s, 5m, 1.5h): sets sizes that are not given")
    steps: int = number(1000, "optimizer steps", ge=1, le=1 << 40)
    batch_size: int = number(16, "sequences in an optimizer step, over all devices", ge=1, le=1 << 24)
    micro_batch_size: int | None = number(
        None, "sequences in one forward pass, null: batch_size; on a CPU about 1,024 tokens of it", ge=1, le=1 << 24
    )
    log_every_steps: int = number(10, "a metrics line", ge=1)
    eval_every_steps: int = number(250, "validation; always after the last step, too", ge=1)
    patience: int | None = number(
        None, "stop after so many validations, of those with a checkpoint, without a better one; null: never", ge=1
    )
    eval_tokens: int | None = number(200_000, "of validation, from the beginning of the split, null: all", ge=1)
    save_every_steps: int = number(250, "a checkpoint; always after the last step, too", ge=1)
    keep_checkpoints: int = number(2, "newest checkpoints kept, beside the best", ge=2)
    sample_every_steps: int = number(250, "a sample of the model's text; 0 is off", ge=0)
    sample_prompt: str = value("", "start of the sample; empty: the model begins")
    sample_tokens: int = number(64, "length of the sample", ge=1)
    tensorboard: bool = value(False, "also write the metrics as TensorBoard scalars, to run_dir/tensorboard")

    @property
    def budget_seconds(self) -> float | None:
        return None if self.budget is None else seconds_of(self.budget)

    @property
    def micro_batch(self) -> int:
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    @property
    def micro_steps(self) -> int:
        return self.batch_size // self.micro_batch

    def problems(self) -> Iterator[tuple[str, str]]:
        try:
            _ = self.budget_seconds
        except ValueError as error:
            yield "budget", str(error)
        if self.batch_size % self.micro_batch:
            yield "micro_batch_size", f"{self.micro_batch} does not divide batch_size {self.batch_size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig(Section):
    """Where and in what precision."""

    device: str = value("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = value("auto", "of activations; weights are trained in float32")
    threads: int | None = number(None, "CPU threads, null: all cores this process may use", ge=1, le=4096)
    compile: bool | None = value(
        None, "torch.compile of each block, null: pretrain chooses, on a CPU by the run's time"
    )
    seed: int = number(1, "of initial weights, batches, dropout and samples", ge=0, lt=1 << 63)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Section):
    """A whole pretraining run."""

    run_dir: str = value(doc="directory of the run: run.yaml, metrics.jsonl, checkpoints/")
    data: DataConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not is_name(self.run_dir):
            yield "run_dir", "must name a directory"
        if self.optim.warmup_steps >= self.train.steps:
            yield "optim", f"warmup_steps {self.optim.warmup_steps} must be below train.steps {self.train.steps}"


# ---------------------------------------------------------------------------------------------------- fine-tuning


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsConfig(Section):
    """What is learnt from: rows with named fields; for task text, text as in pretraining."""

    train: tuple[str, ...] = value(doc="JSONL, CSV or TSV with a header row (.gz too), directories, globs")
    validation: tuple[str, ...] = value((), "held-out inputs; empty: a part of `train` is held out")
    validation_fraction: float = number(0.1, "share of the rows held out where `validation` is empty", ge=0, lt=1)
    text_field: str = value("text", "task classify and text: the text")
    label_field: str = value("label", "task classify: the label")
    prompt_field: str = value("prompt", "task instruct: what the model is given")
    completion_field: str = value("completion", "task instruct: what it shall write")
    messages_field: str = value("messages", "task chat: a list of {role, content}")
    max_tokens: int | None = number(None, "a longer row loses its end, null: the model's context", ge=2)
    on_bad_line: Literal["error", "skip"] = value("error", "a line that is no row of the task: stop, or skip and count")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.train:
            yield "train", "no input; name a file"


Pooling = Literal["last", "average"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig(Section):
    """How labels are learnt (task classify)."""

    pooling: Literal["last", "average"] = value(
        "average", "who names the label: the last token, or the mean of what it says and of what all tokens say"
    )
    class_weights: Literal["none", "balanced"] = value("none", "balanced: rare labels count more, each label alike")
    label_smoothing: float = number(0.1, "share of a target spread over all labels", ge=0, lt=1)
    token_dropout: float = number(0.3, "share of a text's tokens hidden while training", ge=0, lt=1)
    every_token_weight: float = number(
        0.9, "share of the loss that asks each token, not only the last, for the label", ge=0, lt=1
    )
    text_loss_weight: float = number(0.0, "of predicting the text itself; it doubles the time of a small model", ge=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): the base stays as it is, and a small file is learnt."""

    rank: int = number(8, "of the change to each matrix", ge=1, le=4096)
    alpha: float = number(16.0, "the change is scaled by alpha / rank", gt=0)
    targets: tuple[Literal["attention", "mlp"], ...] = value(("attention", "mlp"), "the matrices that are adapted")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.targets:
            yield "targets", "name attention, mlp or both"


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig(Section):
    """How long, in what batches, and what happens on the way. A row is an example; for task text, a window."""

    epochs: float = number(3.0, "times that every row is seen", gt=0, le=1e6)
    batch_size: int = number(16, "rows in an optimizer step", ge=1, le=1 << 24)
    micro_batch_tokens: int = number(8192, "tokens in one forward pass, at least one row", ge=1)
    dropout: float | None = number(None, "on embeddings, attention and sub-layers, null: the base's", ge=0, lt=1)
    frozen_blocks: int = number(0, "first blocks that stay as they are; with any, the embedding does too", ge=0)
    log_every_steps: int = number(10, "a metrics line", ge=1)
    evals_per_epoch: int = number(1, "validations, each with a checkpoint; always after the last step, too", ge=1)
    patience: int | None = number(None, "stop after so many validations without a better one; null: never", ge=1)
    keep_checkpoints: int = number(2, "newest checkpoints kept, beside the best", ge=2)
    sample_prompt: str = value("", "written on after each validation (tasks instruct, chat and text); empty: no sample")
    sample_tokens: int = number(64, "length of the sample", ge=1)
    tensorboard: bool = value(False, "also write the metrics as TensorBoard scalars, to run_dir/tensorboard")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(Section):
    """A whole fine-tuning run."""

    run_dir: str = value(doc="directory of the run: run.yaml, metrics.jsonl, checkpoints/")
    base: str = value(doc="the run or checkpoint to begin with")
    task: Literal["classify", "instruct", "chat", "text"] = value(doc="classify, instruct, chat or text")
    data: RowsConfig
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    lora: LoraConfig | None = None  # null: all weights are trained
    optim: OptimConfig = field(default_factory=lambda: OptimConfig.from_preset("finetune"))
    train: TuneConfig = field(default_factory=TuneConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from ((name, "must name a directory") for name in ("run_dir", "base") if not is_name(getattr(self, name)))
        if self.runtime.compile:
            yield "runtime.compile", "is for pretrain, whose steps have one shape; leave it out"


# ----------------------------------------------------------------------------------------------------- generation


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions(Section):
    """How text is drawn from a model; the flags of `generate` and the per-record options of its JSONL input."""

    max_tokens: int = number(200, "new tokens at most", ge=1, le=1 << 31)
    temperature: float = number(0.8, "divides the logits; 0 takes the most likely token", ge=0, le=100)
    top_k: int | None = number(None, "only the k most likely tokens", ge=1)
    top_p: float = number(1.0, "only the fewest tokens whose probabilities reach p (nucleus)", gt=0, le=1)
    min_p: float = number(0.0, "only tokens at least min_p times as likely as the likeliest", ge=0, le=1)
    repetition_penalty: float = number(
        1.0, "divides positive logits of tokens already seen (Keskar et al. 2019)", ge=0.01, le=100
    )
    seed: int = number(0, "same seed, same text, alone or in any batch", ge=0, lt=1 << 63)
    n: int = number(1, "samples per prompt", ge=1, le=1 << 20)
    stop: tuple[str, ...] = value((), "end before the first of these strings")
    truncate: Literal["error", "left"] = value("error", "a prompt longer than the context: refuse it, or keep its end")
    logprobs: int = number(0, "give the log-probability of every new token, and from 2 on of so many likeliest", ge=0)
    min_tokens: int = number(0, "new tokens at least, before one may end the text", ge=0)
    stop_at_eos: bool = value(True, "<|endoftext|> ends the text; else it is never drawn")
    choices: tuple[str, ...] = value((), "the text is one of these, whole, whatever max_tokens")
    regex: str | None = value(None, "the whole text matches this pattern")
    lookup: int = number(0, "guess so many tokens from the text so far; changes the speed only", ge=0, le=64)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.choices and self.regex is not None:
            yield "regex", "choices say what the text may be; leave out one of the two"
        if self.min_tokens and (self.choices or self.regex is not None):
            yield "min_tokens", "choices or a pattern say where the text may end; leave it out"
        if "" in self.stop:
            yield "stop", "an empty text; leave it out"
        if "" in self.choices:
            yield "choices", "an empty choice; leave it out"
        if self.min_tokens > self.max_tokens:
            yield "min_tokens", f"{self.min_tokens} is more than max_tokens {self.max_tokens}"
