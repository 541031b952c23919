"""Rotary parameters in a config.json: rope_parameters since transformers 5, rope_theta and rope_scaling before."""

from __future__ import annotations

from typing import Any

from gptcli.config.model import ModelConfig, RopeScaling
from gptcli.interop.family import Document, Family, number_of

# A field of RopeScaling -> its key and default, by the kind.
_KEYS: dict[str, dict[str, tuple[str, Any]]] = {
    "none": {},
    "linear": {"factor": ("factor", 1.0)},
    "llama3": {
        "factor": ("factor", 8.0),
        "original_context": ("original_max_position_embeddings", None),
        "low_frequency_factor": ("low_freq_factor", 1.0),
        "high_frequency_factor": ("high_freq_factor", 4.0),
    },
    "yarn": {
        "factor": ("factor", 1.0),
        "original_context": ("original_max_position_embeddings", None),
        "fast_turns": ("beta_fast", 32.0),
        "slow_turns": ("beta_slow", 1.0),
        "whole_dimensions": ("truncate", True),
        "attention_factor": ("attention_factor", None),
    },
}


def read_rope(document: Document, family: Family) -> dict[str, Any]:
    """Return the rotary fields of ModelConfig; ValueError where model.GPT cannot hold what is said."""
    if family.rope == "none":
        return {}
    new, old = (_mapping(document, key) for key in ("rope_parameters", "rope_scaling"))
    theta_key, theta = family.rope_theta
    theta = number_of(document, theta_key, number_of(document, "rope_theta", theta))
    if family.rope == "one":
        return _of_one(document, {**new, **old}, family, theta)
    full, sliding = (_mapping(new, kind) for kind in ("full_attention", "sliding_attention"))
    local = number_of(document, "rope_local_base_freq", 10000.0)
    if sliding.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters {sliding!r}: a GPT of gptcli scales layers of full attention only")
    return {
        **_of_one(document, {**full, **old}, family, theta),
        "rope_local_theta": float(number_of(sliding, "rope_theta", local)),
    }


def _of_one(document: Document, parameters: dict[str, Any], family: Family, theta: float) -> dict[str, Any]:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    # Dynamic scaling changes nothing within max_position_embeddings, and gptcli goes no further.
    kind = "none" if kind in ("default", "dynamic") else kind
    if not isinstance(kind, str) or kind not in _KEYS:
        known = ", ".join(name for name in _KEYS if name != "none")
        raise ValueError(f"rope_parameters {parameters!r}: a GPT of gptcli cannot hold it; want default, {known}")
    if parameters.get("mscale") or parameters.get("mscale_all_dim"):
        raise ValueError("rope_parameters: a GPT of gptcli cannot hold mscale; want attention_factor")
    values = {name: parameters.get(key, default) for name, (key, default) in _KEYS[kind].items()}
    if values.get("original_context", 0) is None:
        values["original_context"] = document.get("max_position_embeddings")
    numbers: dict[str, Any] = {name: float(given) if type(given) is int and name != "original_context" else given
                               for name, given in values.items()}  # fmt: skip
    found: dict[str, Any] = {
        "rope_theta": float(number_of(parameters, "rope_theta", theta)),
        "rope_scaling": RopeScaling(kind=kind, **numbers),  # type: ignore[arg-type]
    }
    share_key, share = family.rotary_share or ("partial_rotary_factor", 1.0)
    share = number_of(parameters, "partial_rotary_factor", number_of(document, share_key, share))
    if share != 1.0:
        if family.rotary_share is None:
            raise ValueError(f"partial_rotary_factor {share}: {family.architecture} does not have it; want 1.0")
        heads = document[family.keys["num_heads"][0]]
        head_dim = document.get("head_dim") or document[family.keys["hidden_size"][0]] // heads
        found["rotary_dim"] = int(head_dim * share)
    return found


def _mapping(document: Document, key: str) -> dict[str, Any]:
    given = document.get(key) or {}
    if not isinstance(given, dict):
        raise ValueError(f"{key}: want a mapping, got {given!r}")
    return given


def write_rope(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Return the keys of transformers 5, and those of 4 beside them."""
    if family.rope == "none":
        return {}
    scaling = config.rope_scaling
    kind = "default" if scaling.kind == "none" else scaling.kind
    scaled = {key: getattr(scaling, name) for name, (key, _) in _KEYS[scaling.kind].items()}
    scaled = {key: given for key, given in scaled.items() if given is not None}
    share = {}
    if family.rotary_share is not None:
        share = {"partial_rotary_factor": (config.rotary_dim or config.head_size) / config.head_size}
    parameters = {"rope_type": kind, "rope_theta": config.rope_theta, **scaled, **share}
    document: dict[str, Any] = {family.rope_theta[0]: config.rope_theta}
    if family.rotary_share is not None:
        document[family.rotary_share[0]] = share["partial_rotary_factor"]
    if family.rope == "one":
        document["rope_parameters"] = parameters
    else:
        local = config.rope_theta if config.rope_local_theta is None else config.rope_local_theta
        sliding = {"rope_type": "default", "rope_theta": local}
        document["rope_parameters"] = {"full_attention": parameters, "sliding_attention": sliding}
        document["rope_local_base_freq"] = local
    if scaled and family.rope == "one":
        document["rope_scaling"] = {"rope_type": kind, "rope_theta": config.rope_theta, **scaled, **share}
    return document
