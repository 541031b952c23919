"""The declaration and checking of a section of a run file. Standard library only.

`number(...)` and `value(...)` declare a field with its bounds and facts. `Section.__post_init__` checks type, bounds
and relations, so that a section made in Python is held to the same rules as one read from a file; `yaml_file` adds
file, line and origin.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, field
from typing import Any, ClassVar, Literal, NamedTuple

from gptcli.base.errors import ConfigError

FACTS = frozenset(("may_change", "before", "auto", "repeated", "path", "sampling", "tasks"))


def number(
    default: Any = MISSING,
    doc: str = "",
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    **facts: Any,
) -> Any:
    """Declare a numeric field with open (gt, lt) or closed (ge, le) bounds, help, and the facts of `value`."""
    return value(default, doc, gt=gt, ge=ge, lt=lt, le=le, **facts)


def value(default: Any = MISSING, doc: str = "", **facts: Any) -> Any:
    """Declare a field with one line of help. Facts that other code goes by:

    may_change  a resumed run may have another value and is still the same run
    before      what versions that did not have the field did, where that is not its default
    auto        pretrain chooses the value where it is left open; "size" for the fields that make the model's size
    repeated    the value that pretrain gives an open field where the text is seen many times
    path        names files or a directory: `~` is the home directory
    tasks       of fine-tuning that read it, separated by spaces; in a run of another one it must be left out
    sampling    an option of how the next token is drawn: a flag of every command that writes text
    """
    assert facts.keys() <= FACTS | {"gt", "ge", "lt", "le"}, f"unknown facts of a field: {facts}"
    return field(default=default, metadata={"doc": doc, **facts})


class Key(NamedTuple):
    """A field of a section. `section` is its class where the field is itself a section, or a section or None."""

    declared: dataclasses.Field[Any]
    types: tuple[Any, ...]  # that a value may have, without None
    optional: bool  # None is a value, too
    section: type[Section] | None

    def fact(self, name: str) -> Any:
        """Return a fact of the field, None where it has none."""
        return self.declared.metadata.get(name)

    def default(self, base: Section | None) -> Any:
        """Return what stands where nothing is given: the value in `base`, or the field's default.

        MISSING where there is none, and where it is the section's class itself, whose own fields have defaults.
        """
        if base is not None:
            return getattr(base, self.declared.name)
        factory: Any = self.declared.default_factory
        return self.declared.default if factory in (MISSING, self.section) else factory()

    def problem(self, given: Any) -> str | None:
        """Return why a value does not fit the field's type and bounds, or None where it does."""
        if given is None and self.optional:
            return None
        if not any(_fits(given, kind) for kind in self.types):
            return _type_problem(self, given)
        return _bounds_problem(self.declared.metadata, given)


def keys_of(section: type[Section]) -> Mapping[str, Key]:
    """Return the fields of a section by name; `preset` is a choice among the section's presets."""
    return _keys_of(typing.cast(Any, section))


@functools.cache
def _keys_of(section: Any) -> Mapping[str, Key]:
    hints = typing.get_type_hints(section)
    if section.presets:
        hints["preset"] = Literal[tuple(section.presets)]
    found = {}
    for declared in dataclasses.fields(section):
        hint = hints[declared.name]
        kinds = members(hint)
        own = tuple(kind for kind in kinds if kind is not types.NoneType)
        nested = next((kind for kind in own if isinstance(kind, type) and issubclass(kind, Section)), None)
        found[declared.name] = Key(declared, own, len(own) < len(kinds), nested)
    return types.MappingProxyType(found)


def all_keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield every dotted key below a section, sections included."""
    for name, key in keys_of(section).items():
        yield prefix + name, key
        if key.section:
            yield from all_keys(key.section, f"{prefix}{name}.")


def keys_with(section: type[Section], fact: str) -> dict[str, Any]:
    """Return the dotted keys below a section whose field states a fact, each with what it states."""
    return {dotted: key.fact(fact) for dotted, key in all_keys(section) if key.fact(fact) is not None}


def is_default(section: Section, dotted: str) -> bool:
    """Return whether a field below a section has its default value."""
    *path, name = dotted.split(".")
    owner: Section = functools.reduce(getattr, path, section)
    key = keys_of(type(owner))[name]
    default = key.default(None)
    return bool(getattr(owner, name) == (key.section() if default is MISSING and key.section else default))


_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _type_problem(key: Key, given: Any) -> str:
    kind = key.types[0]
    if typing.get_origin(kind) is Literal:
        return f"must be one of {', '.join(typing.get_args(kind))}, got {given!r}"
    names = [_KINDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in key.types]
    if typing.get_origin(kind) is tuple:
        items = members(typing.get_args(kind)[0])
        names = [f"a list, each item {' or '.join(_KINDS.get(item, 'a mapping') for item in items)}"]
    return f"must be {' or '.join(names + ['null'] * key.optional)}, got {given!r}"


def _bounds_problem(bounds: Mapping[str, Any], given: Any) -> str | None:
    """Return why a number is out of bounds, or None. A NaN is outside of every bound."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return None
    if isinstance(given, float) and not math.isfinite(given):
        return f"must be a finite number, got {given}"
    comparisons = (
        ("gt", ">", operator.gt),
        ("ge", ">=", operator.ge),
        ("lt", "<", operator.lt),
        ("le", "<=", operator.le),
    )
    wanted = [
        f"{sign} {bounds[name]}"
        for name, sign, holds in comparisons
        if bounds.get(name) is not None and not holds(given, bounds[name])
    ]
    return f"must be {' and '.join(wanted)}, got {given}" if wanted else None


def members(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type that is none."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _fits(given: Any, kind: Any) -> bool:
    if len(members(kind)) > 1:
        return any(_fits(given, member) for member in members(kind))
    if typing.get_origin(kind) is Literal:
        return isinstance(given, str) and given in typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(given, tuple) and all(_fits(item, typing.get_args(kind)[0]) for item in given)
    if kind in (int, float):
        return isinstance(given, (int, kind)) and not isinstance(given, bool)
    return isinstance(given, kind)


class Section:
    """Base of every section: bounds and relations are checked when one is made.

    `presets` maps a name to field values that stand in for the defaults where the section's `preset` field has that
    name; values given explicitly win over them. `problems` yields (field name, message) for broken relations.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    __slots__ = ()

    if typing.TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            """Take the fields by name; dataclass makes each section its own."""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in keys_of(type(self))}
        wrong = {name: keys_of(type(self))[name].problem(each) for name, each in given.items()}
        found = [f"{name}: {problem}" for name, problem in wrong.items() if problem]
        found = found or [f"{name}: {problem}" for name, problem in self.problems()]
        if found:
            raise ConfigError(*found)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield relations between fields that do not hold, as (field name, message)."""
        yield from ()

    def unread(self) -> frozenset[str]:
        """Return the dotted keys below that mean nothing with the values of the others."""
        return frozenset()

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> Any:
        """Make the section that `preset: NAME` means, with explicit changes on top."""
        return cls(preset=preset, **{**cls.presets[preset], **changes})


def is_name(path: str | None) -> bool:
    """Return whether a file or directory may have this name."""
    return path is None or ("\0" not in path and bool(path.strip()))
