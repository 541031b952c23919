"""How a section of a run file is declared and checked. Standard library only.

`number(...)` declares a field with its bounds; `Section.__post_init__` checks type, bounds and relations, so that a
section made in Python is held to the same rules as one read from a file. `yaml_file` adds file, line and origin.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

from gptcli.base.errors import ConfigError


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
