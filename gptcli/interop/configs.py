"""config.json of transformers <-> ModelConfig, by the tables of families."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import shown
from gptcli.config.model import ModelConfig
from gptcli.interop.families import FAMILIES, Family
from gptcli.interop.names import LINEARS

# Fields that do not change what a trained model computes.
_TRAINING_ONLY = {"preset", "dropout", "init_std", "zero_init_projections"}
_TYPES = {declared.name: str(declared.type) for declared in dataclasses.fields(ModelConfig)}


def family_of(document: Mapping[str, Any], place: str) -> Family:
    """The family of a config.json; DataError where there is none."""
    architectures = document.get("architectures")
    if not architectures:
        architectures = [f.architecture for f in FAMILIES.values() if f.model_type == document.get("model_type")]
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str) or name not in FAMILIES:
        said = f"architecture {shown(str(name))}" if name else "names no architecture that is known"
        raise DataError(f"{place}: {said}; gptcli imports {', '.join(FAMILIES)}")
    return FAMILIES[name]


def architecture_of(document: Mapping[str, Any]) -> str:
    """The name of a config.json's class, else of its kind."""
    architectures = document.get("architectures")
    return str(architectures[0]) if architectures else str(document.get("model_type"))


def read_config(document: Mapping[str, Any], family: Family, place: str) -> ModelConfig:
    """The ModelConfig that computes what the class does; DataError with every key that has no place in one."""
    problems = [f"{place}: {problem}" for problem in _foreign(document, family)]
    values: dict[str, Any] = {name: choices[0] for name, choices in family.holds.items()}
    for name, (key, default) in family.keys.items():
        given = document.get(key, default)
        if given is None and name == "logit_softcap":
            given = 0.0
        if not _fits(given, _TYPES[name]) or (given is None and default is not None):
            problems.append(f"{place}: {key}: want {_TYPES[name]}, got {shown(repr(given))}")
        values[name] = given
    values["bias"] = any(has_bias(document, family, module) for module in LINEARS)
    try:
        values["activation"] = _activation(document, family)
        if family.rotary:
            values["rope_theta"] = _rope_theta(document)
    except (ValueError, OverflowError) as error:
        problems.append(f"{place}: {error}")
    if problems:
        raise DataError(*problems)
    try:
        return ModelConfig(preset=family.preset, zero_init_projections=False, **values)
    except ConfigError as error:
        raise DataError(*(f"{place}: {problem}" for problem in error.problems)) from None


def unsaid(document: Mapping[str, Any]) -> Iterator[str]:
    """What of the config.json is left behind although the model computes the same."""
    if document.get("auto_map"):
        yield "auto_map names code of the model's own, which is never run; the architecture is that of transformers"
    rates = {key: document[key] for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop") if key in document}
    if len(set(map(str, rates.values()))) > 1:
        yield f"dropout is one rate in gptcli: resid_pdrop {rates.get('resid_pdrop')}, and not {shown(str(rates))}"


def has_bias(document: Mapping[str, Any], family: Family, module: str) -> bool:
    """Whether a linear layer has a bias in this config.json."""
    said = family.biases.get(module, False)
    return bool(document.get(said, False)) if isinstance(said, str) else said


def _foreign(document: Mapping[str, Any], family: Family) -> Iterator[str]:
    """Keys whose value model.GPT cannot hold."""
    only = {**family.only, "quantization_config": None, "is_encoder_decoder": False}
    for key, wanted in only.items():
        if bool(document.get(key, wanted)) != bool(wanted):
            yield f"{key} {shown(repr(document[key]))}: a GPT of gptcli cannot hold it; want {wanted}"
    kinds = document.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        yield "layer_types: a GPT of gptcli cannot hold sliding attention; want full_attention in every layer"


def _fits(given: Any, type_name: str) -> bool:
    if given is None:
        return "None" in type_name
    if "bool" in type_name:
        return isinstance(given, bool)
    numbers = (int, float) if "float" in type_name else (int,)
    return isinstance(given, numbers) and not isinstance(given, bool)


def _activation(document: Mapping[str, Any], family: Family) -> str:
    default = next(iter(family.activations.values()))[0]
    given = document.get(family.activation_key, default)
    for ours, theirs in family.activations.items():
        if given in theirs:
            return ours
    known = ", ".join(name for theirs in family.activations.values() for name in theirs)
    raise ValueError(f"{family.activation_key} {shown(repr(given))}: a GPT of gptcli cannot hold it; want {known}")


def _rope_theta(document: Mapping[str, Any]) -> float:
    """The base of the rotary frequencies: in rope_parameters since transformers 5, before that beside rope_scaling."""
    for key in ("rope_parameters", "rope_scaling"):
        given = document.get(key) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{key}: want a mapping, got {shown(repr(given))}")
        kind = given.get("rope_type", given.get("type", "default"))
        if kind != "default" or given.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(f"{key} {shown(repr(given))}: a GPT of gptcli cannot hold it; want rope_type default")
    theta = (document.get("rope_parameters") or {}).get("rope_theta", document.get("rope_theta", 10000.0))
    if not _fits(theta, "float"):
        raise ValueError(f"rope_theta: want a number, got {shown(repr(theta))}")
    return float(theta)


def family_for(config: ModelConfig, families: Sequence[Family], form: str) -> Family:
    """The family that can hold the model; DataError with what the nearest one cannot, and why: `form` with its name."""
    tried = [(list(problems(config, family)), family) for family in families]
    unheld, nearest = min(tried, key=lambda pair: len(pair[0]))
    if unheld:
        raise DataError(*(f"model.{problem}; {form.format(nearest.architecture)}" for problem in unheld))
    return nearest


def problems(config: ModelConfig, family: Family) -> Iterator[str]:
    """What of the config the class cannot hold. An option that no table names is held only where it is off."""
    for declared in dataclasses.fields(config):
        option, given = declared.name, getattr(config, declared.name)
        if option in family.keys or option in _TRAINING_ONLY:
            continue
        match option:
            case "activation":
                fits = given in family.activations
            case "num_kv_heads":
                fits = config.kv_heads == config.num_heads
            case "head_dim":
                fits = config.head_size * config.num_heads == config.hidden_size
            case "bias" if option not in family.holds:
                fits = not given or len(family.biases) == len(LINEARS)
            case "rope_theta":
                fits = True
            case _:
                fits = given in family.holds[option] if option in family.holds else not given
        if not fits:
            yield f"{option}: {given}"
    if family.rotary and config.hidden_size % config.num_heads:
        yield f"num_heads: {config.num_heads} does not divide hidden_size {config.hidden_size}"


def write_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """The config.json of the class, without the ids of tokens."""
    given = {
        **{name: getattr(config, name) for name in family.keys},
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "logit_softcap": config.logit_softcap or None,
        "init_std": config.init_std or family.keys["init_std"][1],
    }
    document = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: given[name] for name, (key, _) in family.keys.items()},
        family.activation_key: family.activations[config.activation][0],
        **{key: config.bias for key in family.biases.values() if isinstance(key, str)},
    }
    if family.rotary:  # the key of transformers 5, and that of 4
        document["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
        document["rope_theta"] = config.rope_theta
    if "dropout" in family.keys:
        document |= dict.fromkeys(("embd_pdrop", "attn_pdrop"), config.dropout)
    return document
