"""The shape of a model in the metadata of a GGUF file: one table of keys, read and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.config.model import PARTS, ModelConfig, RopeScaling
from gptcli.config.schema import keys_of
from gptcli.interop.configs import differing, whole
from gptcli.interop.gguf_names import Architecture
from gptcli.model.rotary import rotary_frequencies

Facts = Mapping[str, Any]

EMBEDDING = "token_embd.weight"
FREQUENCIES = "rope_freqs.weight"  # what each frequency is divided by: Llama 3.1 has no key for its scaling

_KEYS = {
    "context_length": "context_length",
    "hidden_size": "embedding_length",
    "num_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
_ROTARY = {"rotary_dim": "rope.dimension_count", "rope_theta": "rope.freq_base"}
_PATTERN = "attention.sliding_window_pattern"
# A module of each part that may have biases.
_BIASED = {"qkv": "attention.qkv", "projection": "attention.projection", "mlp": "mlp.up", "norm": "attention_norm"}
# What a file without a key for it does not do.
_PLAIN: dict[str, Any] = {
    "sliding_window": None,
    "attention_pattern": ("sliding",),
    "rope_pattern": ("rope",),
    "rope_local_theta": None,
    "rotary_dim": None,
    "attention_scale": None,
    "attention_scale_by_layer": False,
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logit_scale": 1.0,
}


def _keys(architecture: Architecture) -> dict[str, str]:
    family = architecture.family
    kind = "layer_norm_rms_epsilon" if family.fixed["norm"] == "rmsnorm" else "layer_norm_epsilon"
    rotary = {} if family.rope == "none" else _ROTARY
    return {**_KEYS, "norm_eps": f"attention.{kind}", **rotary, **architecture.keys}


def read_shape(facts: Facts, tensors: Mapping[str, Any], architecture: Architecture, place: str) -> ModelConfig:
    """Return the config of the model in a file; DataError with what of it a GPT of gptcli cannot hold."""
    name, family = architecture.name, architecture.family
    found = {key.removeprefix(f"{name}."): value for key, value in facts.items() if key.startswith(f"{name}.")}
    fields = {**family.fixed, **_read(found, architecture, place)}
    if EMBEDDING not in tensors:
        raise DataError(f"{place}: tensor {EMBEDDING} is missing; the file is not complete")
    fields["vocab_size"] = int(tensors[EMBEDDING].shape[-1])
    fields["tie_embeddings"] = "output.weight" not in tensors
    block = architecture.names.block.format(0)
    for part in PARTS:
        if part != "norm" or fields["norm"] == "layernorm":
            fields[f"{part}_bias"] = f"{block}{architecture.names.inside[_BIASED[part]][0]}.bias" in tensors
    fields |= {"activation": architecture.activations[0], "init_std": 0.02, "zero_init_projections": False}
    try:
        config = ModelConfig(preset=family.preset, **fields)
        if FREQUENCIES in tensors:
            config = dataclasses.replace(config, rope_scaling=_scaling(config, tensors[FREQUENCIES].data, place))
        return whole(config, family)
    except ConfigError as error:
        raise DataError(*(f"{place}: {problem}" for problem in error.problems)) from None


def _read(found: Facts, architecture: Architecture, place: str) -> dict[str, Any]:
    """Return the fields of ours that the metadata says; `found`: its keys without the architecture's name."""
    keys = _keys(architecture)
    fields = {name: _rounded(found[key]) for name, key in keys.items() if key in found}
    for name in ("hidden_size", "num_heads", "num_layers"):
        if name not in fields:
            raise DataError(f"{place}: {keys[name]} is missing; the file is not complete")
    for name, given in fields.items():
        if (wrong := keys_of(ModelConfig)[name].problem(given)) is not None:
            raise DataError(f"{place}: {keys[name]} {escape(str(given))}: {wrong}")
    fields.setdefault("num_kv_heads", fields["num_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_heads"])
    if (values := found.get("attention.value_length", fields["head_dim"])) != fields["head_dim"]:
        raise DataError(f"{place}: heads of {fields['head_dim']} with values of {values}; gptcli has one width")
    if divisor := fields.get("logit_scale"):
        fields["logit_scale"] = 1 / divisor
    scaling = found.get("rope.scaling.type", "none")
    if scaling == "linear":
        fields["rope_scaling"] = _linear(found.get("rope.scaling.factor", 1.0), place)
    elif scaling not in ("none", "default"):
        raise DataError(f"{place}: rope.scaling.type {escape(str(scaling))}: gptcli does not read it from a GGUF "
                        "file; import the model's Hugging Face directory")  # fmt: skip
    return {**fields, **architecture.derived(fields), **_pattern(found, fields["num_layers"])}


def _linear(factor: Any, place: str) -> RopeScaling:
    try:
        return RopeScaling(kind="linear", factor=factor)
    except ConfigError as error:
        raise DataError(f"{place}: rope.scaling.{error.problems[0]}") from None


def _pattern(found: Facts, num_layers: int) -> dict[str, Any]:
    """Return the layers with a window, where the file says so: every n-th is without, or one answer for each."""
    given = found.get(_PATTERN)
    if type(given) is int and given > num_layers:
        return {"attention_pattern": ("sliding",)}
    if type(given) is int and given > 0:
        return {"attention_pattern": ("sliding",) * (given - 1) + ("full",)}
    if isinstance(given, list):
        return {"attention_pattern": tuple("sliding" if windowed else "full" for windowed in given)}
    return {}


def _rounded(value: Any) -> Any:
    """Return a number of 32 bits as the shortest that is meant: 1e-6, and not 9.99999997e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _scaling(config: ModelConfig, stored: Any, place: str) -> RopeScaling:
    """Return the scaling of Llama 3.1 that divides frequencies by the stored numbers; DataError where none does."""
    divisors = torch.from_numpy(np.array(stored, dtype=np.float64)).flatten()
    for context in (1 << power for power in (13, *range(10, 18))):
        scaling = RopeScaling(kind="llama3", factor=max(1.0, float(divisors.max())), original_context=context)
        candidate = dataclasses.replace(config, rope_scaling=scaling)
        expected = frequency_divisors(candidate)
        if expected.shape == divisors.shape and torch.allclose(expected.double(), divisors, rtol=1e-4):
            return scaling
    raise DataError(f"{place}: {FREQUENCIES} is a scaled rotation other than Llama 3.1's; import the model's "
                    "Hugging Face directory")  # fmt: skip


def frequency_divisors(config: ModelConfig) -> Tensor:
    """Return what the scaling divides the frequency of every rotated pair by, float32."""
    scaled, _ = rotary_frequencies(config)
    plain, _ = rotary_frequencies(dataclasses.replace(config, rope_scaling=RopeScaling()))
    return (plain / scaled)[plain != 0].float()


def shape_facts(config: ModelConfig, architecture: Architecture) -> dict[str, Any]:
    """Return the metadata of a file that says the config, without the architecture's name before the keys."""
    given = {**{name: getattr(config, name) for name in _keys(architecture)},
             "num_kv_heads": config.kv_heads, "head_dim": config.head_size, "intermediate_size": config.mlp_size,
             "rotary_dim": config.rotary_dim or config.head_size, "logit_scale": 1 / config.logit_scale,
             "attention_scale": config.attention_scale or config.head_size**-0.5}  # fmt: skip
    facts = {key: given[name] for name, key in _keys(architecture).items()}
    facts |= {"attention.value_length": config.head_size, "vocab_size": config.vocab_size}
    if config.rope_scaling.kind == "linear":
        facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling.factor}
    windows = [config.window(layer) is not None for layer in range(config.num_layers)]
    if not architecture.windows or not any(windows):
        facts.pop("attention.sliding_window", None)
    return {key: value for key, value in facts.items() if value is not None}


def unwritten(config: ModelConfig, architecture: Architecture) -> Iterator[str]:
    """Yield what of a config a class of transformers holds and a file that llama.cpp reads does not: what another
    config comes back from its metadata."""
    if config.activation not in architecture.activations:
        yield f"model.activation: {config.activation}; llama.cpp has {', '.join(architecture.activations)} there"
    kinds = ("none", "linear", "llama3") if architecture.frequencies else ("none", "linear")
    if config.rope_scaling.kind not in kinds:
        yield f"model.rope_scaling: {config.rope_scaling.kind} is not written to GGUF; export with --to hf"
        return
    theirs = whole(config, architecture.family)
    read = _read(shape_facts(theirs, architecture), architecture, "model.gguf")
    back = dataclasses.replace(theirs, **{**_PLAIN, **architecture.family.fixed, **read})
    for name, ours in differing(theirs, back):
        yield f"model.{name}: {ours}; llama.cpp does not have it there; export with --to hf"
