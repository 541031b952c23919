"""YAML run files and `-s key=value` overrides -> frozen dataclasses. Knows nothing about what the fields mean.

`load` and `parse` read a file into a Section and remember where each value came from. Every problem of a file and its
overrides is raised together, in one ConfigError:

    run.yaml:12: model.num_layers: must be >= 1, got 0
    -s train.stepz=3: unknown key 'train.stepz'; did you mean 'train.steps'?
"""

from __future__ import annotations

import os
import stat
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import yaml

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.config.schema import Key, Section, all_keys, keys_of
from gptcli.config.suggest import did_you_mean, nearest_file, nearest_key
from gptcli.config.yaml_nodes import NULLS, Misfit, compose, is_null, line_of, override_node, read_value, unfit

T = TypeVar("T", bound=Section)

MAX_BYTES = 1 << 20
MAX_PROBLEMS = 100
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".tsv", ".gz")  # of what is no run file

BROKEN = object()  # stands for a value that has been reported as wrong


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A configuration, and for the dotted key of every field where its value came from.

    An origin is "default", "preset NAME", "run.yaml:12" or "-s key=value".
    """

    value: T
    origins: dict[str, str]


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> Loaded[T]:
    """Load the configuration that a file holds, overrides on top. Raises ConfigError only."""
    return parse(cls, read(path), name=os.fspath(path), overrides=overrides)


def read(path: str | Path, *, wait: bool = True) -> str:
    """Return the text of a UTF-8 file of at most 1 MiB. Raises ConfigError only.

    A pipe is read to its end; without `wait` anything but a regular file is refused.
    """
    name = escape(os.fspath(path), 1000)
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | (0 if wait else os.O_NONBLOCK))) as file:
            if not wait and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{name}: is no regular file; this is no run file")
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a directory; name a run file, such as the run.yaml in that of a run") from None
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file{did_you_mean(nearest_file(Path(path)))}") from None
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
    """Parse the configuration in `text`, overrides on top; `name` stands for the file. Raises ConfigError only."""
    reader = _Reader(cls, name)
    readable = reader.read_file(text)
    reader.read_overrides(overrides)
    # Of a file that could not be read, no field can be called missing.
    config = reader.build(cls, "", None) if readable else BROKEN
    if reader.found:
        raise ConfigError(*reader.problems())
    return Loaded(typing.cast(T, config), reader.origins)


def given_keys(cls: type[Section], path: str | Path) -> set[str]:
    """Return the dotted keys that a file gives a value, though they may not fit together. Raises ConfigError only."""
    reader = _Reader(cls, os.fspath(path))
    reader.read_file(read(path))
    if reader.found:
        raise ConfigError(*reader.problems())
    return set(reader.given)


class _Place(NamedTuple):
    """The place where a value was given. Problems are listed by `order`: lines, the file as a whole, overrides."""

    order: int
    label: str


class _Reader:
    """One file and its overrides: what they give, key by key, then the sections made of it; every problem met."""

    def __init__(self, root: type[Section], name: str) -> None:
        self.root = root
        self.name = escape(name, 1000)
        self.keys = dict(all_keys(root))
        self.given: dict[str, tuple[Any, _Place]] = {}  # value (BROKEN if it was wrong) and place of a field
        self.opened: dict[str, _Place] = {}  # sections that hold something given
        self.origins: dict[str, str] = {}
        self.found: list[tuple[_Place, str]] = []
        self.whole_file = _Place(MAX_BYTES + 2, self.name)
        self.source = self.whole_file  # or the override that is being read

    def problems(self) -> list[str]:
        """Return the problems, one line each, in order of place."""
        ordered = sorted(self.found, key=lambda problem: problem[0].order)
        lines = [f"{place.label}: {escape(message, 1000)}" for place, message in ordered[:MAX_PROBLEMS]]
        more = len(ordered) - len(lines)
        return [*lines, f"{self.name}: {more} more problems"] if more else lines

    def place(self, line: int | None) -> _Place:
        """Return a line of the file as a place; the whole source where there is none, and in an override."""
        if line is None or self.source is not self.whole_file:
            return self.source
        return _Place(line, f"{self.name}:{line}")

    def complain(self, place: _Place, message: str, dotted: str = "") -> None:
        """Note a problem, of the field `dotted`, which the place of an override may name already."""
        named = not dotted or place.label.startswith(f"-s {dotted}=")
        self.found.append((place, message if named else f"{dotted}: {message}"))

    def complain_unknown(self, place: _Place, dotted: str) -> None:
        near = nearest_key(dotted, self.keys) if len(self.found) < MAX_PROBLEMS else None  # each search takes time
        self.complain(place, f"unknown key '{escape(dotted)}'{did_you_mean(near)}")

    def read_file(self, text: str) -> bool:
        """Read the file; return whether it is a YAML mapping, or empty."""
        try:
            root = compose(text)
            if not isinstance(root, yaml.MappingNode) and not is_null(root):
                raise unfit(root, "a mapping", "; write `key: value` lines")
        except Misfit as misfit:
            mend = "; want a run file, which names text under data.train" if self.name.endswith(TEXT_SUFFIXES) else ""
            self.complain(self.place(misfit.line), f"{misfit}{mend}")
            return False
        self.read_mapping(self.root, root, "")
        return True

    def read_mapping(self, section: type[Section], mapping: yaml.Node, prefix: str) -> None:
        """Read the keys of a mapping, or of a null that stands for an empty one."""
        keys, first_lines = keys_of(section), dict[str, int]()
        for key_node, node in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
            place = self.place(line_of(key_node))
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(place, "a key must be a name, not a list or a mapping")
                continue
            name, dotted = key_node.value, prefix + key_node.value
            if name in first_lines:
                message = f"duplicate key '{escape(dotted)}', first on line {first_lines[name]}; remove one"
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
            self.source = _Place(order, f"-s {escape(override)}")
            self.read_override(*override.partition("="))
        self.source = self.whole_file

    def read_override(self, dotted: str, equals: str, text: str) -> None:
        place, key = self.source, self.keys.get(dotted)
        if not equals:
            self.complain(place, "missing '='; write -s key=value")
        elif key is None:
            self.complain_unknown(place, dotted)
        elif key.section and not (key.optional and text.strip() in NULLS - {""}):
            self.complain(place, f"is a section; set one of its fields, -s {dotted}.field=value", dotted)
        else:
            try:
                node = override_node(text, key)
            except Misfit as misfit:
                self.complain(place, str(misfit))
                return
            self.open(dotted.rpartition(".")[0], place)
            self.read_value(key, dotted, node, place)

    def open(self, dotted: str, place: _Place) -> None:
        """Note that a section and those around it exist, also where a `section: null` came before."""
        while dotted:
            self.opened.setdefault(dotted, place)
            self.given.pop(dotted, None)
            dotted = dotted.rpartition(".")[0]

    def read_value(self, key: Key, dotted: str, node: yaml.Node, place: _Place) -> None:
        # A key with nothing below it is an empty section: all its lines are commented out.
        empty = is_null(node) and not node.value and not key.optional
        if key.section and (empty or isinstance(node, yaml.MappingNode)):
            self.open(dotted, place)
            self.read_mapping(key.section, node, dotted + ".")
            return
        try:
            value = read_value(node, key)
        except Misfit as misfit:
            self.complain(self.place(misfit.line), str(misfit), dotted)
            value = BROKEN
        self.given[dotted] = value, place

    def build(self, section: type[Section], prefix: str, base: Section | None) -> Any:
        """Return the section, or BROKEN. Where nothing is given, `base` or else the fields' defaults have the values.

        A preset that is named goes before `base`: it starts from the fields' own defaults.
        """
        keys, preset = keys_of(section), typing.cast(Any, None)
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

    def build_value(self, key: Key, dotted: str, base: Section | None, stand_in: tuple[Any, str] | None) -> Any:
        """Return the value of a field, or BROKEN; note its origin. A preset's value and its origin are a `stand_in`."""
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
            self.complain(self.whole_file, f"missing; give {key.fact('doc') or 'a value'}", dotted)
            return BROKEN
        return default

    def place_of(self, dotted: str) -> _Place:
        """Return where a field was given, or else the section around it."""
        while dotted:
            if dotted in self.given:
                return self.given[dotted][1]
            if dotted in self.opened:
                return self.opened[dotted]
            dotted = dotted.rpartition(".")[0]
        return self.whole_file
