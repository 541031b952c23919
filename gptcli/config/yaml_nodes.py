"""Text -> YAML nodes -> values by the type of a field.

The text of a scalar is read by the type of its field, as YAML 1.2 does. PyYAML itself follows YAML 1.1 and would read
`1e-4` as a string, `010` as eight, `1:30` as ninety and `yes` as true; here it only finds the nodes and their lines.
"""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Callable
from dataclasses import MISSING
from typing import Any, Literal

import yaml

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.config.schema import Key, Section, keys_of, members
from gptcli.config.suggest import closest, did_you_mean

MAX_DEPTH = 20
MAX_EVENTS = 100_000  # of the YAML parser: one per scalar, two per list or mapping; a second's work
MAX_NUMBER_LENGTH = 80  # keeps int() fast and every number fit for float() and for a message
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The scalars of the YAML 1.2 core schema.
INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
NULLS = {"", "~", "null", "Null", "NULL"}
OLD_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
# Not allowed in YAML, or (U+0085, U+2028, U+2029) a line break in YAML 1.1 only, which would shift line numbers.
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
# A word that YAML takes for something else than text, at a place where a value begins.
NOT_PLAIN = re.compile(r"(?:^|[\s\[,])([*&!%@`][^\s,\]]*|-)(?=\s*(?:[,\]]|$|\s#))")
VARIABLE = re.compile(r"\$(\w*[A-Za-z_]\w*|\{\w+\})")


class Misfit(Exception):
    """An error: what a text holds, from a line on, is not YAML or not what a field takes."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line = line


def compose(text: str) -> yaml.Node:
    """Return the root node; of an empty text an empty scalar. Raises Misfit."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if bad := FORBIDDEN.search(text):
        message = f"character U+{ord(bad.group()):04X} is not allowed; write it as an escape in double quotes"
        raise Misfit(text.count("\n", 0, bad.start()) + 1, message)
    lines = text.removesuffix("\n").split("\n")
    try:
        _check_events(text, lines)
        return yaml.compose(text, Loader=LOADER) or yaml.ScalarNode("", "")
    except (yaml.YAMLError, ValueError) as error:  # ValueError: "\U00110000", in PyYAML without libyaml
        context, mark = getattr(error, "context", None), getattr(error, "problem_mark", None)
        message = f"not YAML: {f'{context}, ' if context else ''}{getattr(error, 'problem', None) or error}"
        if "maximum nesting depth" in message:  # libyaml's own limit: its scanner reads ahead of the events
            message = f"nested deeper than {MAX_DEPTH} levels"
        if mark is None:
            raise Misfit(None, message) from None
        line = min(mark.line + 1, len(lines))  # the mark of an end that came too soon is behind the last line
        start = getattr(error, "context_mark", None) or mark
        message += f" (it starts on line {start.line + 1})" if start.line + 1 < line else ""
        message += "; indent with spaces, not tabs" if lines[line - 1].lstrip(" ").startswith("\t") else ""
        raise Misfit(line, message + _quote_hint(lines[line - 1])) from None


def _quote_hint(line: str) -> str:
    """Return what to do about a word of a line that YAML does not take for text."""
    found = NOT_PLAIN.search(line)
    return f'; put {escape(found[1])} in quotes: "{escape(found[1])}"' if found else ""


def _check_events(text: str, lines: list[str]) -> None:
    """Refuse what must not become nodes; event by event, so that deep nesting costs nothing. Raises Misfit."""
    depth = documents = 0
    for count, event in enumerate(yaml.parse(text, Loader=LOADER)):
        line = event.start_mark.line + 1 if event.start_mark else None
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise Misfit(line, "a second document starts here; a run file holds one")
        if count > MAX_EVENTS:
            raise Misfit(line, f"more than {MAX_EVENTS} keys and values up to here; this is no run file")
        if depth > MAX_DEPTH:
            raise Misfit(line, f"nested deeper than {MAX_DEPTH} levels")
        hint = _quote_hint(lines[line - 1]) if line and line <= len(lines) else ""
        if getattr(event, "anchor", None) is not None:
            raise Misfit(line, f"anchors and aliases (&, *) are not supported; write the value out{hint}")
        if (tag := getattr(event, "tag", None)) is not None:
            raise Misfit(line, f"tags ({escape(tag)}) are not supported; remove it{hint or ', or quote the value'}")


def line_of(node: yaml.Node) -> int | None:
    """Return the line of a node, from 1; None where it comes from no file."""
    return node.start_mark.line + 1 if node.start_mark else None


def is_null(node: yaml.Node) -> bool:
    """Return whether a node is an unquoted null."""
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in NULLS


def override_node(text: str, key: Key) -> yaml.Node:
    """Return the node that the text of `-s KEY=TEXT` stands for: of a field for text the text itself. Raises Misfit.

    Lists are written in [ ] as in a file; other text for a list is its one item.
    """
    kind = key.types[0]
    is_list = typing.get_origin(kind) is tuple
    takes_text = kind is str or typing.get_origin(kind) is Literal or (is_list and _takes_text(kind))
    listed = is_list and (not text or (text.startswith("[") and text.endswith("]")))
    if not takes_text or listed or (key.optional and text in NULLS - {""}):
        return compose(text)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Misfit(None, "holds bytes that are not UTF-8; name the file by a glob: ? stands for a character")
    return yaml.ScalarNode("", text, style='"' if text in NULLS else None)


def read_value(node: yaml.Node, key: Key) -> Any:
    """Return the value of a node by its field, paths with the home directory for `~`. Raises Misfit."""
    if key.optional and is_null(node):
        return None
    value = _read(node, key.types[0])
    if key.fact("path"):
        given = value if isinstance(value, tuple) else (value,)
        given = tuple(expand_home(path) if isinstance(path, str) else path for path in given)
        value = given if isinstance(value, tuple) else given[0]
    if problem := key.problem(value):
        raise Misfit(line_of(node), problem)
    return value


def expand_home(path: str) -> str:
    """Return the path with the home directory for `~` or `~USER` at its start, as a shell does. Raises Misfit."""
    expanded = os.path.expanduser(path)
    if expanded.split("/")[0] == "~":
        raise Misfit(None, f"{escape(path)}: there is no home directory; write the path out")
    if (found := VARIABLE.search(path)) and not os.path.lexists(expanded):
        message = f"{escape(path)}: variables such as {found[0]} are not expanded in run files"
        raise Misfit(None, f'{message}; write the path out, or let the shell do it: -s KEY="{found[0]}/..."')
    return expanded


def _read(node: yaml.Node, kind: Any) -> Any:
    """Return the value of a node by a type. Raises Misfit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(node, yaml.SequenceNode):
        return tuple(_read_item(item, members(arguments[0])) for item in node.value)
    if origin is tuple:
        if _takes_text(kind) and isinstance(node, yaml.ScalarNode) and not is_null(node):
            return (node.value,)
        raise unfit(node, "a list", "; write [a, b]")
    if kind is str or origin is Literal:
        if not isinstance(node, yaml.ScalarNode) or is_null(node):
            raise unfit(node, "a string", "; put it in quotes" if node.value else '; write "" for an empty string')
        if origin is Literal and node.value not in arguments:
            raise unfit(node, f"one of {', '.join(arguments)}", did_you_mean(closest(node.value, arguments)))
        return node.value
    if isinstance(kind, type) and issubclass(kind, Section):
        raise unfit(node, "a mapping", "; write indented `key: value` lines")
    return _read_plain(node, *READERS[kind])


def _takes_text(kind: Any) -> bool:
    """Return whether an item of a list may be text."""
    return str in members(typing.get_args(kind)[0])


def _read_item(node: yaml.Node, kinds: tuple[Any, ...]) -> Any:
    """Return the value of an item of a list: of a mapping the section that it makes. Raises Misfit."""
    section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
    if section is None or not isinstance(node, yaml.MappingNode):
        return _read(node, kinds[0])
    keys, values = keys_of(section), dict[str, Any]()
    for key_node, value_node in node.value:
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
        if name not in keys or name in values:
            what = "duplicate" if name in values else "unknown"
            near = did_you_mean(closest(name, tuple(keys))) if name not in keys else ""
            raise Misfit(line_of(key_node), f"{what} key '{escape(name)}' of an item{near}")
        try:
            values[name] = read_value(value_node, keys[name])
        except Misfit as misfit:
            raise Misfit(misfit.line, f"{name}: {misfit}") from None
    if missing := [name for name, key in keys.items() if key.default(None) is MISSING and name not in values]:
        raise Misfit(line_of(node), f"an item lacks {missing[0]}; give {keys[missing[0]].fact('doc')}")
    try:
        return section(**values)
    except ConfigError as error:
        raise Misfit(line_of(node), str(error)) from None


def _read_plain(node: yaml.Node, wanted: str, read: Callable[[str], Any]) -> Any:
    """Return what `read` makes of an unquoted scalar's text. Raises Misfit where that is None."""
    text = node.value if isinstance(node, yaml.ScalarNode) else ""
    value = read(text)
    if value is None and wanted == "true or false" and text.lower() in OLD_BOOLEANS:
        raise unfit(node, wanted, f"; write {OLD_BOOLEANS[text.lower()]}")
    if value is None and len(text) > MAX_NUMBER_LENGTH:
        raise unfit(node, wanted, f"; no number has more than {MAX_NUMBER_LENGTH} characters")
    if value is None or (isinstance(node, yaml.ScalarNode) and node.style):
        raise unfit(node, wanted, "" if value is None else "; remove the quotes")
    return value


def unfit(node: yaml.Node, wanted: str, mend: str) -> Misfit:
    """Return the error that a node is not what is wanted."""
    if isinstance(node, yaml.ScalarNode):
        got = f"the string '{escape(node.value)}'" if node.style else escape(node.value) or "nothing"
    elif isinstance(node, yaml.SequenceNode) and not node.flow_style and all(map(is_null, node.value)):
        got, mend = "a dash, which begins a list", '; for stdin write "-" in quotes'
    else:
        got = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return Misfit(line_of(node), f"must be {wanted}, got {got}{mend}")


def _number(text: str) -> int | float | None:
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    if INTEGER.fullmatch(text):
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    if FLOAT.fullmatch(text):
        return float(text.replace(".", "") if text[-1] in "fFnN" else text)  # .inf, .nan
    return None


def _integer(text: str) -> int | None:
    """Read an integer, also as a float without a fraction such as `1e9`, as far as floats are exact."""
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
