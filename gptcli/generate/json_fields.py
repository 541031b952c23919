"""The values under the keywords of a JSON Schema, checked: it may be any JSON."""

from __future__ import annotations

import json
from typing import Any

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape

KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset("properties required additionalProperties minProperties maxProperties".split()),
    "array": frozenset("items minItems maxItems prefixItems uniqueItems".split()),
    "string": frozenset("minLength maxLength pattern format".split()),
    "number": frozenset("minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split()),
}
TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def types_of(schema: dict[str, Any], place: str) -> list[str]:
    """Return the types that a schema names, else the one that its keywords are for."""
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not names or any(name not in TYPES for name in names):
            raise problem(place, f"type must be one or several of {', '.join(TYPES)}")
        return ["number"] if names == ["integer", "number"] else list(dict.fromkeys(names))
    found = [name for name, keywords in KEYWORDS.items() if keywords & set(schema)]
    return found or list(TYPES)


def has_type(value: Any, name: str) -> bool:
    """Return whether a value is of a type; 2.0 is an integer."""
    match value:
        case bool():
            return name == "boolean"
        case None:
            return name == "null"
        case int() | float():
            return name == "number" or (name == "integer" and (isinstance(value, int) or value.is_integer()))
        case str():
            return name == "string"
        case list():
            return name == "array"
        case _:
            return name == "object"


def bounds_of(schema: dict[str, Any], least: str, most: str, place: str) -> tuple[int, int | None]:
    """Return two whole numbers, 0 and None where they are missing."""
    low, high = schema.get(least, 0), schema.get(most)
    for name, bound in ((least, low), (most, high)):
        if not (type(bound) is int and bound >= 0) and not (name == most and bound is None):
            raise problem(place, f"{name} must be a whole number from 0 on")
    if high is not None and low > high:
        raise problem(place, f"{least} is more than {most}")
    return low, high


def list_of(schema: dict[str, Any], keyword: str, place: str) -> list[Any]:
    """Return a list of one or more."""
    found = schema[keyword]
    if not isinstance(found, list) or not found:
        raise problem(place, f"{keyword} must be a list of one or more")
    return found


def json_bytes(value: Any, place: str) -> bytes:
    """Return a value as JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise problem(place, "a value that is no JSON text") from None


def problem(place: str, what: str) -> ConfigError:
    """Make the refusal of a schema, by the place in it."""
    return ConfigError(f"JSON schema: {escape(place)}: {what}")
