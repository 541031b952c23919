"""YAML run files and `-s key=value` overrides <-> frozen dataclasses. Knows nothing about what the fields mean.

`load` and `parse` read a file into a Section and remember where each value came from; `dump` and `show` write the
complete effective file. Every problem of a file and its overrides is raised together, in one ConfigError:

    run.yaml:12: model.num_layers: must be >= 1, got 0
    -s train.stepz=3: unknown key 'train.stepz'; did you mean 'train.steps'?

The text of a scalar is read by the type of its field, as YAML 1.2 does. PyYAML itself follows YAML 1.1 and would read
`1e-4` as a string, `010` as eight, `1:30` as ninety and `yes` as true; here it only finds the nodes and their lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import yaml

from gptcli.base.errors import ConfigError
from gptcli.config.schema import Section, bounds_problem

T = TypeVar("T", bound=Section)

MAX_BYTES = 1 << 20
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".tsv", ".gz")  # of what is no run file
MAX_DEPTH = 20
MAX_EVENTS = 100_000  # of the YAML parser: one per scalar, two per list or mapping; a second's work
MAX_NUMBER_LENGTH = 80  # keeps int() fast and every number fit for float() and for a message
MAX_PROBLEMS = 100
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The scalars of the YAML 1.2 core schema.
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NULLS = {"", "~", "null", "Null", "NULL"}
OLD_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
# Not allowed in YAML, or (U+0085, U+2028, U+2029) a line break in YAML 1.1 only, which would shift line numbers.
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][A-Za-z0-9_./*+-]*")  # a string with one meaning in YAML 1.1 and 1.2

BROKEN = object()  # stands for a value that has been reported as wrong


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A configuration, and for the dotted key of every field where its value came from.

    An origin is "default", "preset NAME", "run.yaml:12" or "-s key=value".
    """

    value: T
    origins: dict[str, str]


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> Loaded[T]:
    """The configuration that a file holds, overrides on top. Raises ConfigError only."""
    return parse(cls, read(path), name=os.fspath(path), overrides=overrides)


def read(path: str | Path) -> str:
    """The text of a UTF-8 file of at most 1 MiB. Raises ConfigError only."""
    name = visible(os.fspath(path), 1000)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a directory; name a run file, such as the run.yaml in that of a run") from None
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file{_mend(_nearest_file(Path(path)))}") from None
    except UnicodeDecodeError as error:
        line = len((data[: error.start] + b".").splitlines())
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise ConfigError(f"{name}:{line}: {problem}") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise ConfigError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_BYTES} bytes; this is no run file")
    return text


def parse(cls: type[T], text: str, *, name: str, overrides: Sequence[str] = ()) -> Loaded[T]:
    """The configuration in `text`, overrides on top; `name` stands for the file. Raises ConfigError only."""
    reader = _Reader(cls, name)
    readable = reader.read_file(text)
    reader.read_overrides(overrides)
    # Of a file that could not be read, no field can be called missing.
    config = reader.build(cls, "", None) if readable else BROKEN
    if reader.found:
        raise ConfigError(*reader.problems())
    return Loaded(typing.cast(T, config), reader.origins)


def dump(config: Section) -> str:
    """The complete effective file: `parse` gives back an equal configuration.

    The exception: YAML has no form for lone surrogates (undecodable file names) and `parse` refuses them, as it does
    numbers of more than 80 characters.
    """
    return "".join(f"{line}\n" for line, _ in _lines(config, ""))


def show(loaded: Loaded[Any]) -> str:
    """What `dump` gives, with the origin of each value as a comment."""
    lines = [(line, loaded.origins.get(key)) for line, key in _lines(loaded.value, "")]
    width = max((len(line) for line, origin in lines if origin and len(line) <= 60), default=0)
    return "".join(f"{line:<{width}}  # {origin}\n" if origin else f"{line}\n" for line, origin in lines)


def keys(section: type[Section], base: Section | None = None, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key of a run file, its default as YAML (empty where there is none) and what it means."""
    for name, key in _keys(section).items():
        default = key.default(base)
        if key.section:
            yield from keys(key.section, default if isinstance(default, Section) else None, f"{prefix}{name}.")
        else:
            text = "" if default is MISSING else _written(default)
            yield prefix + name, text, key.declared.metadata.get("doc", "")


def visible(text: str, limit: int = 80) -> str:
    """Text from outside, fit for a one-line message: control characters escaped, cut at `limit` characters."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# -------------------------------------------------------------------------------------------------- the dataclasses


class _Key(NamedTuple):
    """A field. `section` is its class where the field is itself a section, or a section or None."""

    declared: dataclasses.Field[Any]
    hint: Any
    section: type[Section] | None

    def default(self, base: Section | None) -> Any:
        """What stands where nothing is given: the value in `base`, or the field's default.

        MISSING where there is none, and where it is the section's class itself, whose own fields have defaults.
        """
        if base is not None:
            return getattr(base, self.declared.name)
        factory: Any = self.declared.default_factory
        return self.declared.default if factory in (MISSING, self.section) else factory()


def _keys(section: Any) -> dict[str, _Key]:
    """The fields of a section, a `preset` as a choice among the section's presets."""
    hints = typing.get_type_hints(section)
    if section.presets:
        hints["preset"] = Literal[tuple(section.presets)]
    kinds = {declared.name: _without_none(hints[declared.name])[0] for declared in dataclasses.fields(section)}
    nested = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}
    return {field.name: _Key(field, hints[field.name], nested.get(field.name)) for field in dataclasses.fields(section)}


def _tree(section: type[Section], prefix: str = "") -> Iterator[tuple[str, _Key]]:
    """Every dotted key below a section, sections included."""
    for name, key in _keys(section).items():
        yield prefix + name, key
        if key.section:
            yield from _tree(key.section, f"{prefix}{name}.")


def _without_none(hint: Any) -> tuple[Any, bool]:
    """(X, True) for `X | None`, otherwise (hint, False)."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    (kind,) = (choice for choice in typing.get_args(hint) if choice is not types.NoneType)
    return kind, True


# ----------------------------------------------------------------------------------------------------- suggestions


def _closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(words), 1, cutoff)), None)


def _nearest_key(dotted: str, keys: Iterable[str]) -> str | None:
    """The key that was meant: the same name in another section, else a similar one here, else a similar one there."""
    prefix, name = dotted[: dotted.rfind(".") + 1], dotted[dotted.rfind(".") + 1 :]
    by_name: dict[str, list[str]] = {}
    for key in keys:
        by_name.setdefault(key[key.rfind(".") + 1 :], []).append(key)
    if name not in by_name:
        if sibling := _closest(name, [near for near, places in by_name.items() if prefix + near in places]):
            return prefix + sibling
        name = _closest(name, by_name, 0.75) or ""
    return _closest(dotted, by_name.get(name, []), 0.0)


def _nearest_file(path: Path) -> str | None:
    try:
        near = _closest(path.name, sorted(os.listdir(path.parent)))
    except OSError:
        return None
    return str(path.parent / near) if near else None


def _mend(near: str | None) -> str:
    return f"; did you mean '{visible(near, 1000)}'?" if near else ""


# --------------------------------------------------------------------------------------------------------- from YAML


class _Misfit(Exception):
    """What a text holds, from a line on, is not YAML or not what a field takes."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line = line


def _compose(text: str) -> yaml.Node:
    """The root node; of an empty text an empty scalar. Raises _Misfit."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if bad := FORBIDDEN.search(text):
        message = f"character U+{ord(bad.group()):04X} is not allowed; write it as an escape in double quotes"
        raise _Misfit(text.count("\n", 0, bad.start()) + 1, message)
    try:
        _check_events(text)
        return yaml.compose(text, Loader=LOADER) or yaml.ScalarNode("", "")
    except (yaml.YAMLError, ValueError) as error:  # ValueError: "\U00110000", in PyYAML without libyaml
        context, mark = getattr(error, "context", None), getattr(error, "problem_mark", None)
        message = f"not YAML: {f'{context}, ' if context else ''}{getattr(error, 'problem', None) or error}"
        if "maximum nesting depth" in message:  # libyaml's own limit: its scanner reads ahead of the events
            message = f"nested deeper than {MAX_DEPTH} levels"
        if mark is None:
            raise _Misfit(None, message) from None
        lines = text.removesuffix("\n").split("\n")
        line = min(mark.line + 1, len(lines))  # the mark of an end that came too soon is behind the last line
        start = getattr(error, "context_mark", None) or mark
        message += f" (it starts on line {start.line + 1})" if start.line + 1 < line else ""
        message += "; indent with spaces, not tabs" if lines[line - 1].lstrip(" ").startswith("\t") else ""
        raise _Misfit(line, message) from None


def _check_events(text: str) -> None:
    """Refuses what must not become nodes; event by event, so that deep nesting costs nothing. Raises _Misfit."""
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=LOADER)):
        line = event.start_mark.line + 1 if event.start_mark else None
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise _Misfit(line, "a second document starts here; a run file holds one")
        if count > MAX_EVENTS:
            raise _Misfit(line, f"more than {MAX_EVENTS} keys and values up to here; this is no run file")
        if depth > MAX_DEPTH:
            raise _Misfit(line, f"nested deeper than {MAX_DEPTH} levels")
        if getattr(event, "anchor", None) is not None:
            raise _Misfit(line, "anchors and aliases (&, *) are not supported; write the value out, or quote it")
        if (tag := getattr(event, "tag", None)) is not None:
            raise _Misfit(line, f"tags ({visible(tag)}) are not supported; remove it, or quote the value")


def _line(node: yaml.Node) -> int | None:
    return node.start_mark.line + 1 if node.start_mark else None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in NULLS


def _read(node: yaml.Node, hint: Any) -> Any:
    """The value of a node by the type of its field. Raises _Misfit."""
    kind, optional = _without_none(hint)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if optional and _is_null(node):
        return None
    if origin is tuple and isinstance(node, yaml.SequenceNode):
        return tuple(_read(item, arguments[0]) for item in node.value)
    if origin is tuple:
        if arguments[0] is str and isinstance(node, yaml.ScalarNode) and not _is_null(node):
            return (node.value,)
        raise _unfit(node, "a list", "; write [a, b]")
    if kind is str or origin is Literal:
        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            raise _unfit(node, "a string", "; put it in quotes" if node.value else '; write "" for an empty string')
        if origin is Literal and node.value not in arguments:
            raise _unfit(node, f"one of {', '.join(arguments)}", _mend(_closest(node.value, arguments)))
        return node.value
    if isinstance(kind, type) and issubclass(kind, Section):
        raise _unfit(node, "a mapping", "; write indented `key: value` lines")
    return _read_plain(node, *READERS[kind])


def _read_plain(node: yaml.Node, wanted: str, read: Callable[[str], Any]) -> Any:
    """What `read` makes of an unquoted scalar's text. Raises _Misfit where that is None."""
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    value = read(text)
    if value is None and wanted == "true or false" and text.lower() in OLD_BOOLEANS:
        raise _unfit(node, wanted, f"; write {OLD_BOOLEANS[text.lower()]}")
    if value is None and len(text) > MAX_NUMBER_LENGTH:
        raise _unfit(node, wanted, f"; no number has more than {MAX_NUMBER_LENGTH} characters")
    if value is None or (isinstance(node, yaml.ScalarNode) and node.style):
        raise _unfit(node, wanted, "" if value is None else "; remove the quotes")
    return value


def _unfit(node: yaml.Node, wanted: str, mend: str) -> _Misfit:
    if isinstance(node, yaml.ScalarNode):
        got = f"the string '{visible(node.value)}'" if node.style else visible(node.value) or "nothing"
    else:
        got = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return _Misfit(_line(node), f"must be {wanted}, got {got}{mend}")


def _number(text: str) -> int | float | None:
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    if INTEGER.fullmatch(text):
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    if FLOAT.fullmatch(text):
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)  # .inf, .nan
    return None


def _integer(text: str) -> int | None:
    """Also of a float without a fraction, `1e9`, as far as floats are exact."""
    number = _number(text)
    if isinstance(number, float):
        return int(number) if number.is_integer() and abs(number) <= 1 << 53 else None
    return number


def _float(text: str) -> float | None:
    number = _number(text)
    return None if number is None else float(number)


READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    bool: ("true or false", BOOLEANS.get),
    int: ("an integer", _integer),
    float: ("a number", _float),
}


# ------------------------------------------------------------------------------------------------------- one reading


class _Place(NamedTuple):
    """Where a value was given. Problems are listed by `order`: lines, then the file as a whole, then overrides."""

    order: int
    label: str


class _Reader:
    """One file and its overrides: what they give, key by key, then the sections made of it; every problem met."""

    def __init__(self, root: type[Section], name: str) -> None:
        self.root = root
        self.name = visible(name, 1000)
        self.keys = dict(_tree(root))
        self.given: dict[str, tuple[Any, _Place]] = {}  # value (BROKEN if it was wrong) and place of a field
        self.opened: dict[str, _Place] = {}  # sections that hold something given
        self.origins: dict[str, str] = {}
        self.found: list[tuple[_Place, str]] = []
        self.whole_file = _Place(MAX_BYTES + 2, self.name)
        self.source = self.whole_file  # or the override that is being read

    def problems(self) -> list[str]:
        """One line each, in order of place."""
        ordered = sorted(self.found, key=lambda problem: problem[0].order)
        lines = [f"{place.label}: {visible(message, 1000)}" for place, message in ordered[:MAX_PROBLEMS]]
        more = len(ordered) - len(lines)
        return [*lines, f"{self.name}: {more} more problems"] if more else lines

    def place(self, line: int | None) -> _Place:
        """A line of the file; the whole source where there is none, and in an override."""
        if line is None or self.source is not self.whole_file:
            return self.source
        return _Place(line, f"{self.name}:{line}")

    def complain(self, place: _Place, message: str, dotted: str = "") -> None:
        """Notes a problem, of the field `dotted`, which the place of an override may name already."""
        named = not dotted or place.label.startswith(f"-s {dotted}=")
        self.found.append((place, message if named else f"{dotted}: {message}"))

    def complain_unknown(self, place: _Place, dotted: str) -> None:
        near = _nearest_key(dotted, self.keys) if len(self.found) < MAX_PROBLEMS else None  # a near miss costs 1 ms
        self.complain(place, f"unknown key '{visible(dotted)}'{_mend(near)}")

    def read_file(self, text: str) -> bool:
        """Whether the text is a YAML mapping, or empty."""
        try:
            root = _compose(text)
            if not isinstance(root, yaml.MappingNode) and not _is_null(root):
                raise _unfit(root, "a mapping", "; write `key: value` lines")
        except _Misfit as misfit:
            mend = "; want a run file, which names text under data.train" if self.name.endswith(TEXT_SUFFIXES) else ""
            self.complain(self.place(misfit.line), f"{misfit}{mend}")
            return False
        self.read_mapping(self.root, root, "")
        return True

    def read_mapping(self, section: type[Section], mapping: yaml.Node, prefix: str) -> None:
        """Of a mapping, or of a null that stands for an empty one."""
        keys, first_lines = _keys(section), dict[str, int]()
        for key_node, node in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
            place = self.place(_line(key_node))
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(place, "a key must be a name, not a list or a mapping")
                continue
            name, dotted = key_node.value, prefix + key_node.value
            if name in first_lines:
                message = f"duplicate key '{visible(dotted)}', first on line {first_lines[name]}; remove one"
                self.complain(place, message)
            elif name == "<<":
                self.complain(place, "merge keys (<<) are not supported; write the values out")
            elif name in keys:
                self.read_value(keys[name], dotted, node, place)
            else:
                self.complain_unknown(place, dotted)
            first_lines.setdefault(name, place.order)

    def read_overrides(self, overrides: Sequence[str]) -> None:
        for order, override in enumerate(overrides, self.whole_file.order + 1):
            self.source = _Place(order, f"-s {visible(override)}")
            self.read_override(*override.partition("="))
        self.source = self.whole_file

    def read_override(self, dotted: str, equals: str, text: str) -> None:
        place, key = self.source, self.keys.get(dotted)
        if not equals:
            self.complain(place, "missing '='; write -s key=value")
        elif key is None:
            self.complain_unknown(place, dotted)
        elif key.section and not (_without_none(key.hint)[1] and text.strip() in NULLS - {""}):
            self.complain(place, f"is a section; set one of its fields, -s {dotted}.field=value", dotted)
        else:
            try:
                node = _compose(text)
            except _Misfit as misfit:
                self.complain(place, str(misfit))
                return
            self.open(dotted.rpartition(".")[0], place)
            self.read_value(key, dotted, node, place)

    def open(self, dotted: str, place: _Place) -> None:
        """Notes that a section and those around it exist, also where a `section: null` came before."""
        while dotted:
            self.opened.setdefault(dotted, place)
            self.given.pop(dotted, None)
            dotted = dotted.rpartition(".")[0]

    def read_value(self, key: _Key, dotted: str, node: yaml.Node, place: _Place) -> None:
        _, optional = _without_none(key.hint)
        # A key with nothing below it is an empty section: all its lines are commented out.
        empty = _is_null(node) and not node.value and not optional
        if key.section and (empty or isinstance(node, yaml.MappingNode)):
            self.open(dotted, place)
            self.read_mapping(key.section, node, dotted + ".")
            return
        try:
            value = _read(node, key.hint)
            if problem := bounds_problem(key.declared, value):
                raise _Misfit(_line(node), problem)
        except _Misfit as misfit:
            self.complain(self.place(misfit.line), str(misfit), dotted)
            value = BROKEN
        self.given[dotted] = value, place

    def build(self, section: type[Section], prefix: str, base: Section | None) -> Any:
        """The section, or BROKEN. Where nothing is given, `base` or else the fields' defaults have the values.

        A preset that is named goes before `base`: it starts from the fields' own defaults.
        """
        keys, preset = _keys(section), typing.cast(Any, None)
        if section.presets and f"{prefix}preset" in self.given:
            base, preset = None, self.given[f"{prefix}preset"][0]
        elif section.presets and base is None:
            preset = keys["preset"].declared.default
        stand_ins = {name: (value, f"preset {preset}") for name, value in section.presets.get(preset, {}).items()}
        values = {name: self.build_value(key, prefix + name, base, stand_ins.get(name)) for name, key in keys.items()}
        if any(value is BROKEN for value in values.values()):
            return BROKEN
        try:
            return section(**values)
        except ConfigError as error:
            for problem in error.problems:
                name, _, message = problem.partition(": ")
                self.complain(self.place_of(prefix + name), message, prefix + name)
            return BROKEN

    def build_value(self, key: _Key, dotted: str, base: Section | None, stand_in: tuple[Any, str] | None) -> Any:
        """The value of a field, or BROKEN; notes its origin. A preset's value and its origin are a `stand_in`."""
        default = key.default(base)
        if dotted in self.given:
            stand_in = self.given[dotted][0], self.given[dotted][1].label
        if stand_in:
            value, self.origins[dotted] = stand_in
            return value
        if key.section and (dotted in self.opened or default is not None):
            return self.build(key.section, dotted + ".", default if isinstance(default, Section) else None)
        self.origins[dotted] = "default"
        if default is MISSING:
            self.complain(self.whole_file, f"missing; give {key.declared.metadata.get('doc') or 'a value'}", dotted)
            return BROKEN
        return default

    def place_of(self, dotted: str) -> _Place:
        """Where a field was given, or else the section around it."""
        while dotted:
            if dotted in self.given:
                return self.given[dotted][1]
            if dotted in self.opened:
                return self.opened[dotted]
            dotted = dotted.rpartition(".")[0]
        return self.whole_file


# ----------------------------------------------------------------------------------------------------------- to YAML


def _lines(section: Section, prefix: str) -> Iterator[tuple[str, str]]:
    """(line, dotted key) of every field, in order of declaration."""
    indent = "  " * prefix.count(".")
    for name in _keys(type(section)):
        value = getattr(section, name)
        if isinstance(value, Section):
            yield f"{indent}{name}:", prefix + name
            yield from _lines(value, f"{prefix}{name}.")
        else:
            yield f"{indent}{name}: {_written(value)}", prefix + name


def _written(value: Any) -> str:
    """A value in YAML's flow style, on one line, with the same meaning in YAML 1.1 and 1.2."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        text = float.__repr__(value)
        if text[-1] in "fn":
            return text.replace("inf", ".inf").replace("nan", ".nan")
        return text if "." in text else text.replace("e", ".0e")  # YAML 1.1 has no float without a point
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if PLAIN.fullmatch(value) and value.lower() not in {*NULLS, *OLD_BOOLEANS, "true", "false"}:
        return str(value)
    # JSON's escapes are YAML's; what JSON leaves as it is and YAML does not allow is escaped on top.
    return FORBIDDEN.sub(lambda bad: f"\\U{ord(bad.group()):08x}", json.dumps(value, ensure_ascii=False))
