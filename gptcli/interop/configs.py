"""config.json of transformers <-> ModelConfig, by the table of families."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.config.model import PARTS, ModelConfig
from gptcli.config.schema import keys_of
from gptcli.interop.families import CLASSIFIERS, FAMILIES
from gptcli.interop.family import Document, Family
from gptcli.interop.rope import read_rope, write_rope

# Fields that do not change what a trained model computes.
_TRAINING_ONLY = {"preset", "dropout", "init_std", "zero_init_projections"}
# What a class that always has it computes as well without: by ones or zeros.
_FILLED = {"norm_weight", "qk_norm_weight", "head_bias", *(f"{part}_bias" for part in PARTS)}


def family_of(document: Document, place: str) -> Family:
    """Return the family of a config.json; DataError where there is none."""
    architectures = document.get("architectures")
    if not architectures:
        architectures = [f.architecture for f in FAMILIES.values() if f.model_type == document.get("model_type")]
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    family = FAMILIES.get(name) or CLASSIFIERS.get(name) if isinstance(name, str) else None
    if family is None:
        said = f"architecture {escape(str(name))}" if name else "names no architecture that is known"
        raise DataError(f"{place}: {said}; gptcli imports {', '.join(FAMILIES)}")
    return family


def architecture_of(document: Document) -> str:
    """Return the name of a config.json's class, else of its kind."""
    architectures = document.get("architectures")
    return str(architectures[0]) if architectures else str(document.get("model_type"))


def labels_of(document: Document, place: str) -> tuple[str, ...]:
    """Return the labels of a classifier's config.json, in the order of their numbers; none of a language model's."""
    architectures = document.get("architectures")
    if not isinstance(architectures, list) or not architectures or architectures[0] not in CLASSIFIERS:
        return ()
    given = document.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = [given.get(str(number)) for number in range(len(given))] if isinstance(given, dict) else []
    if (
        len(labels) < 2
        or len(set(map(str, labels))) < len(labels)
        or not all(isinstance(label, str) for label in labels)
    ):
        raise DataError(f"{place}: id2label {escape(repr(given))}: want two labels or more, numbered from 0")
    return tuple(label for label in labels if label is not None)


def read_config(document: Document, family: Family, place: str) -> ModelConfig:
    """Return the ModelConfig that computes what the class does; DataError with every key that has no place in one."""
    problems = [f"{place}: {problem}" for problem in _foreign(document, family)]
    values: dict[str, Any] = dict(family.fixed)
    for name, (key, default) in family.keys.items():
        given = document.get(key, default)
        if given is None and name in ("logit_softcap", "attention_softcap"):
            given = 0.0
        if given is None and default is not None and "window" not in name:
            problems.append(f"{place}: {key}: must not be null")
        elif problem := keys_of(ModelConfig)[name].problem(given):
            problems.append(f"{place}: {key}: {escape(problem)}")
        values[name] = given
    for read in (_activation, _biases, read_rope, lambda document, family: family.derived(document)):
        try:
            values |= read(document, family)
        except ConfigError as error:  # of rope_scaling
            problems += [f"{place}: {problem}" for problem in error.problems]
        except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
            problems.append(f"{place}: {escape(str(error))}")
    if problems:
        raise DataError(*problems)
    try:
        return ModelConfig(preset=family.preset, zero_init_projections=False, **values)
    except ConfigError as error:
        raise DataError(*(f"{place}: {problem}" for problem in error.problems)) from None


def dropped_keys(document: Document) -> Iterator[str]:
    """Yield what of the config.json is left behind although the model computes the same."""
    if document.get("auto_map"):
        yield "auto_map names code of the model's own, which is never run; the architecture is that of transformers"
    rates = {key: document[key] for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop") if key in document}
    if len(set(map(str, rates.values()))) > 1:
        yield f"dropout is one rate in gptcli: resid_pdrop {rates.get('resid_pdrop')}, and not {escape(str(rates))}"


def _biases(document: Document, family: Family) -> dict[str, Any]:
    """Return which parts have biases: `bias` alone where all are alike, each part's field where they are not."""
    parts = [part for part in PARTS if part != "norm" or family.fixed["norm"] == "layernorm"]
    given = {}
    for part in parts:
        said = family.biases.get(part, False)
        given[part] = said if isinstance(said, bool) else bool(document.get(*said))
    if len(set(given.values())) == 1:
        return {"bias": given["qkv"]}
    return {f"{part}_bias": has for part, has in given.items()}


def _foreign(document: Document, family: Family) -> Iterator[str]:
    """Yield a problem for each key whose value model.GPT cannot represent."""
    only = {**family.only, "quantization_config": None, "is_encoder_decoder": False}
    for key, wanted in only.items():
        if bool(document.get(key, wanted)) != bool(wanted):
            yield f"{key} {escape(repr(document[key]))}: a GPT of gptcli cannot hold it; want {wanted}"


def _activation(document: Document, family: Family) -> dict[str, Any]:
    default = next(iter(family.activations.values()))[0]
    given = default if family.activation_key is None else document.get(family.activation_key, default)
    for ours, theirs in family.activations.items():
        if given in theirs:
            return {"activation": ours}
    known = ", ".join(name for theirs in family.activations.values() for name in theirs)
    raise ValueError(f"{family.activation_key} {given!r}: a GPT of gptcli cannot hold it; want {known}")


def family_for(config: ModelConfig, families: Sequence[Family], form: str, *, came: Document | None = None) -> Family:
    """Return the family that can hold the model, the one of the config.json that it came with if that can, else the one
    with the least that is filled up; DataError with what the nearest one cannot hold, and why: `form` with its name."""
    for family in families:
        if came and family.model_type == came.get("model_type") and not any(problems(config, family)):
            return family
    nearest = nearest_family(config, families)
    if unheld := list(problems(config, nearest)):
        raise DataError(*(f"model.{problem}; {form.format(nearest.architecture)}" for problem in unheld))
    return nearest


def nearest_family(config: ModelConfig, families: Iterable[Family]) -> Family:
    """Return the family that can hold most of the model and, of those, has the least weights and biases beyond it."""

    def rank(family: Family) -> tuple[int, int]:
        unheld = len(list(problems(config, family)))
        theirs = {} if unheld else _computed(whole(config, family))
        return unheld, sum(
            theirs[name] is True and getattr(config, name) is not True for name in _FILLED & theirs.keys()
        )

    return min(families, key=rank)


def problems(config: ModelConfig, family: Family) -> Iterator[str]:
    """Yield what of the config the class cannot hold: what another config comes back when its config.json is read."""
    if config.activation not in family.activations:
        yield f"activation: {config.activation}"
        config = _replace_activation(config, next(iter(family.activations)))
    if family.heads_divide and config.hidden_size % config.num_heads:
        yield f"num_heads: {config.num_heads} does not divide hidden_size {config.hidden_size}"
    try:
        theirs = _computed(whole(config, family))
    except DataError as error:
        fixed = {name: value for name, value in family.fixed.items() if getattr(config, name) != value}
        yield from (f"{name}: {_said(getattr(config, name))}" for name in fixed)
        yield from (problem.removeprefix("config.json: ") for problem in error.problems)
        return
    for name, ours in _computed(config).items():
        if not _same(ours, theirs[name]) and not (name in _FILLED and ours is False):
            yield f"{name}: {_said(ours)}"


def differing(config: ModelConfig, other: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield the options in which two trained models compute something else, each with the value of the first."""
    theirs = _computed(other)
    for name, ours in _computed(config).items():
        if not _same(ours, theirs[name]):
            yield name, _said(ours)


def whole(config: ModelConfig, family: Family) -> ModelConfig:
    """Return the config as the class sees it: with the weights and biases that it always has."""
    return read_config(write_config(config, family), family, "config.json")


def _replace_activation(config: ModelConfig, activation: str) -> ModelConfig:
    changes: dict[str, Any] = {"activation": activation, "intermediate_size": config.mlp_size}
    return dataclasses.replace(config, **changes)


def _computed(config: ModelConfig) -> dict[str, Any]:
    """Return the options that say what a trained model computes, each spelt in one way."""
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in (*_TRAINING_ONLY, "bias", "attention_pattern"):
        del options[name]
    layers = range(config.num_layers)
    windows = [config.window(layer) for layer in layers]
    options |= {
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "sliding_window": [window if window and window < config.context_length else None for window in windows],
        "rope_pattern": [config.rotation(layer) != "none" for layer in layers],
        "attention_scale": config.head_size**-0.5 if config.attention_scale is None else config.attention_scale,
        **{f"{part}_bias": config.biased(part) for part in PARTS},
    }
    options["norm_bias"] = config.norm == "layernorm" and options["norm_bias"]
    options["qk_norm_width"] = config.qk_norm_width if config.qk_norm else "head"
    rotated = config.position == "rope"
    options["rotary_dim"] = (config.rotary_dim or config.head_size) if rotated else None
    options["rope_theta"] = config.rope_theta if rotated else None
    local = any(config.rotation(layer) == "local" for layer in layers)
    scaled = config.rope_scaling.kind != "none"
    options["rope_local_theta"] = config.rope_local_theta if local else None
    if local and config.rope_local_theta == config.rope_theta and not scaled:
        options["rope_local_theta"] = None
    return options


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return bool(ours == theirs)


def _said(given: Any) -> str:
    if isinstance(given, list):  # one for each layer
        return str(next((item for item in given if item), None))
    return given.kind if hasattr(given, "kind") else str(given)


def write_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Return the config.json of the class, without the ids of tokens."""
    given = {
        **{name: getattr(config, name) for name in family.keys},
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "rotary_dim": config.rotary_dim or config.head_size,
        "logit_softcap": config.logit_softcap or None,
        "attention_softcap": config.attention_softcap or None,
        "init_std": config.init_std or family.keys["init_std"][1],
    }
    document = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: given[name] for name, (key, _) in family.keys.items()},
    }
    for part, said in family.biases.items():
        if not isinstance(said, bool):  # one key may be for several parts
            document[said[0]] = document.get(said[0], False) or config.biased(part)
    if family.activation_key is not None:
        document[family.activation_key] = family.activations[config.activation][0]
    return document | write_rope(config, family) | family.express(config)
