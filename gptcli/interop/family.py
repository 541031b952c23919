"""A row of the table of families: a class of transformers, its config keys and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gptcli.config.model import ModelConfig
from gptcli.interop.tensor_names import Names

Document = Mapping[str, Any]  # a config.json

Biases = Mapping[str, bool | tuple[str, bool]]


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A class of transformers, and what its config.json and tensors mean to model.GPT."""

    architecture: str
    model_type: str
    preset: str  # of ours that it is nearest to
    keys: Mapping[str, tuple[str, Any]]  # a field of ours -> its key, and the class's default for it
    activations: Mapping[str, tuple[str, ...]]  # ours -> its names there; the first of all is the class's default
    fixed: Mapping[str, Any]  # a field of ours without a key -> the value that the class has
    biases: Biases  # qkv, projection, mlp, norm -> whether they have biases, or the key that says so and its default
    names: Names
    prefix: str  # of the tensor names; some files have dropped it
    activation_key: str | None = "hidden_act"  # None: there is one only
    only: Mapping[str, Any] = field(default_factory=dict)  # a key -> the one value that model.GPT can hold, its default
    rope: Literal["none", "one", "by kind"] = "one"  # whether config.json has rope_parameters, for each kind of layer
    rope_theta: tuple[str, float] = ("rope_theta", 10000.0)  # its key beside them, and the class's default
    rotary_share: tuple[str, float] | None = None  # the same for the rotated share of a head, where that is a choice
    derived: Callable[[Document], dict[str, Any]] = _nothing  # fields of ours that are no key's value alone
    express: Callable[[ModelConfig], dict[str, Any]] = _nothing  # keys for them
    classifier: str | None = None  # the class of the same body with a head on the last token
    heads_divide: bool = False  # the class refuses a hidden_size that num_heads does not divide


def number_of(document: Document, key: str, default: float) -> float:
    """Return a finite number of a config.json; ValueError where it is none."""
    given = document.get(key, default)
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not abs(given) < 1e30:
        raise ValueError(f"{key}: want a number, got {given!r}")
    return given


def list_of(document: Document, key: str, length: int, kinds: tuple[Any, ...]) -> list[Any] | None:
    """Return a list of so many of these values, or None where the key is not there; ValueError where it is another."""
    given = document.get(key)
    if given is None:
        return None
    if not isinstance(given, list) or len(given) != length or any(item not in kinds for item in given):
        raise ValueError(f"{key}: want {length} of {', '.join(map(str, kinds))}, got {given!r}")
    return given
