"""Frozen dataclass sections -> YAML run files: the complete effective file, with origins, and the list of keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING
from typing import TYPE_CHECKING, Any

from gptcli.config.schema import Section, keys_of
from gptcli.config.yaml_nodes import FORBIDDEN, NULLS, OLD_BOOLEANS

if TYPE_CHECKING:
    from gptcli.config.yaml_file import Loaded

PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][A-Za-z0-9_./*+-]*")  # a string with one meaning in YAML 1.1 and 1.2


def dump(config: Section) -> str:
    """Write the complete effective file: `yaml_file.parse` gives back an equal configuration.

    The exception: YAML has no form for lone surrogates (undecodable file names) and `parse` refuses them, as it does
    numbers of more than 80 characters.
    """
    return "".join(f"{line}\n" for line, _ in lines(config))


def show(loaded: Loaded[Any]) -> str:
    """Write what `dump` gives, with the origin of each value as a comment."""
    told = [(line, loaded.origins.get(key)) for line, key in lines(loaded.value)]
    width = max((len(line) for line, origin in told if origin and len(line) <= 60), default=0)
    return "".join(f"{line:<{width}}  # {origin}\n" if origin else f"{line}\n" for line, origin in told)


def describe_keys(
    section: type[Section], base: Section | None = None, prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Yield every key of a run file, its default as YAML (empty where there is none) and its help."""
    for name, key in keys_of(section).items():
        default = key.default(base)
        if key.section:
            inner = default if isinstance(default, Section) else None
            yield from describe_keys(key.section, inner, f"{prefix}{name}.")
        else:
            yield prefix + name, "" if default is MISSING else as_yaml(default), key.fact("doc") or ""


def lines(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (line, dotted key) of every field, in order of declaration."""
    indent = "  " * prefix.count(".")
    for name in keys_of(type(section)):
        value = getattr(section, name)
        if isinstance(value, Section):
            yield f"{indent}{name}:", prefix + name
            yield from lines(value, f"{prefix}{name}.")
        else:
            yield f"{indent}{name}: {as_yaml(value)}", prefix + name


def as_yaml(value: Any) -> str:
    """Write a value in YAML's flow style, on one line, with the same meaning in YAML 1.1 and 1.2."""
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
    if isinstance(value, Section):
        return f"{{{', '.join(f'{name}: {as_yaml(getattr(value, name))}' for name in keys_of(type(value)))}}}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if PLAIN.fullmatch(value) and value.lower() not in {*NULLS, *OLD_BOOLEANS, "true", "false"}:
        return str(value)
    # JSON's escapes are YAML's; what JSON leaves as it is and YAML does not allow is escaped on top.
    return FORBIDDEN.sub(lambda bad: f"\\U{ord(bad.group()):08x}", json.dumps(value, ensure_ascii=False))
