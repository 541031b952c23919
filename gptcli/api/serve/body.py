"""The body of a request -> a JSON object, and fields of it by name, kind and range."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from typing import Any

from gptcli.api.serve.problems import Problem, invalid

MAX_DEPTH = 64
# Fields of OpenAI's API that change nothing here.
HARMLESS = frozenset(
    "user store metadata service_tier safety_identifier prompt_cache_key parallel_tool_calls reasoning_effort"
    " verbosity prediction".split()
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "suffix": ("",),
    "best_of": (1,),
    "modalities": (["text"],),
}


def read_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object; Problem 400 for anything else, for what is nested too deep and for lone surrogates."""
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise invalid(None, f"the body is not UTF-8 at byte {error.start}", "invalid_json") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise invalid(None, f"the body is not JSON ({what[:200]})", "invalid_json") from None
    if not isinstance(document, dict):
        raise invalid(None, "the body must be a JSON object", "invalid_json")
    _check(document, MAX_DEPTH)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} is given twice")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _check(value: Any, depth: int) -> None:
    if depth == 0:
        raise invalid(None, "the body is nested too deep", "invalid_json")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise invalid(None, "the body has a lone surrogate, which is not text", "invalid_json") from None
    elif isinstance(value, dict):
        for name, item in value.items():
            _check(name, depth)
            _check(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth - 1)


class Fields:
    """The fields of a request, each taken once; `rest` refuses those that nobody took."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.known: set[str] = set()

    def take(self, name: str) -> Any:
        """Return a field as it is, None where it is missing or null."""
        self.known.add(name)
        return self.document.get(name)

    def number(self, name: str, low: float, high: float, *, whole: bool = False) -> Any:
        """Return a number of a range, None where there is none."""
        value = self.take(name)
        if value is None:
            return None
        kind = "an integer" if whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise invalid(name, f"must be {kind}")
        if not (low <= value <= high) or (isinstance(value, float) and not math.isfinite(value)):
            raise invalid(name, f"must be {kind} from {low:g} to {high:g}")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false, false where there is none."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(name, "must be true or false")
        return bool(value)

    def text(self, name: str) -> str | None:
        """Return a string, None where there is none."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise invalid(name, "must be a string")
        return value

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """Return a string or a list of strings as strings."""
        value = self.take(name)
        items = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise invalid(name, "must be a string or a list of strings")
        if len(items) > most or any(len(item) > longest for item in items):
            raise invalid(name, f"must be at most {most} strings of at most {longest} characters")
        return tuple(items)

    def choice(self, name: str, allowed: Sequence[str]) -> str | None:
        """Return one of some strings, None where there is none."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise invalid(name, f"must be one of {', '.join(allowed)}")
        return value

    def rest(self) -> None:
        """Refuse fields that nobody took, but for those that change nothing; a misspelt one with the nearest name."""
        for name, value in self.document.items():
            if name in self.known or name in HARMLESS or value is None:
                continue
            if name in NEUTRAL:
                if value in NEUTRAL[name]:
                    continue
                raise Problem(400, "unsupported_parameter", f"{name}: is not supported; leave it out", param=name)
            near = difflib.get_close_matches(name[:80], self.known | HARMLESS | NEUTRAL.keys(), 1)
            mend = f"; did you mean {near[0]}?" if near else ""
            raise Problem(400, "unknown_parameter", f"{name[:80]!r}: no such field{mend}", param=name[:80])
