"""JSON Schema (draft 2020-12) -> an automaton over bytes, whose every text is JSON that the schema describes.

What is written is a part of what a schema allows: the properties that it names, in its order, one space at most after
a comma or colon, numbers of up to 15 digits, and values of any kind nested up to ANY_DEPTH. A keyword that would not be
held to is refused by its name; those that only describe are passed over.

    every type   type (one or several), enum, const, anyOf, allOf (of one), $ref (not recursive), $defs, definitions
    object       properties, required, additionalProperties (a schema where no properties are named)
    array        items, minItems, maxItems, prefixItems (where the length is theirs)
    string       minLength, maxLength, pattern (which the whole string matches), format (date, time, date-time, uuid)
    number       minimum, maximum, exclusiveMinimum, exclusiveMaximum: of any integer, of a number where they are whole
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.generate.json_fields import KEYWORDS, TYPES, bounds_of, has_type, json_bytes, list_of, problem, types_of
from gptcli.generate.json_patterns import FORMATS, INTEGER, LARGEST, NUMBER, decimals, integers
from gptcli.generate.regex import Nodes, Part, Ranges, add_pattern, complement

MAX_LENGTH = 64 << 10  # characters of a schema
MAX_SIZE = 200_000  # of its automaton as written
MAX_STATES = 20_000
MAX_NESTING = 32
ANY_DEPTH = 4  # of arrays and objects in one another, where the schema does not say what a value is
LARGEST_OPEN_BOUND = 10**9  # beyond, a number with six places may be rounded onto the bound

ANNOTATIONS = frozenset(
    "title description default examples deprecated readOnly writeOnly $schema $id $anchor $comment $defs definitions"
    " contentEncoding contentMediaType".split()
)
COMBINING = ("$ref", "anyOf", "allOf", "const", "enum")
SUPPORTED = ANNOTATIONS.union({"type"}, COMBINING, *KEYWORDS.values())

_SHORT_ESCAPES = {0x22: b'\\"', 0x5C: b"\\\\", 8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r"}
_UNESCAPED = complement([(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
_ANY_CHARACTER = complement([(code, code) for code in range(0x20) if code not in _SHORT_ESCAPES])


def parse_schema(text: str) -> tuple[Nodes, Part]:
    """Return the automaton of a schema, given as JSON, with its first and last node.

    ConfigError names the keyword that is not supported or has no value that could be.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"JSON schema: {len(text):,} characters, more than {MAX_LENGTH:,}; simplify it")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"JSON schema: not JSON ({escape(str(error))})") from None
    builder = _Builder(schema)
    return builder.nodes, builder.value(schema, "#")


class _Builder:
    """A builder of the parts of an automaton that values of a schema match. `place`: where a schema stands in all."""

    def __init__(self, root: Any) -> None:
        self.root, self.nodes = root, Nodes(MAX_SIZE)
        self.depth = 0
        self.open_references: list[str] = []

    def value(self, schema: Any, place: str) -> Part:
        """Add a value that a schema describes."""
        if schema is True or (isinstance(schema, dict) and not set(schema) - ANNOTATIONS):
            return self.anything(ANY_DEPTH)
        if not isinstance(schema, dict):
            raise problem(place, "no value fits false" if schema is False else "a schema is an object, true or false")
        for keyword in schema:
            if keyword not in SUPPORTED:
                raise problem(place, f"{escape(keyword)} is not supported; leave it out")
        self.nodes.grow(sum(len(each) for each in schema.values() if isinstance(each, list | dict)))  # to be read
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise problem(place, f"more than {MAX_NESTING} schemas in one another")
        try:
            return self.combined(schema, place)
        finally:
            self.depth -= 1

    def combined(self, schema: dict[str, Any], place: str) -> Part:
        """Add a value of a schema that refers to others or lists values, else by its type."""
        found = [keyword for keyword in COMBINING if keyword in schema]
        if not found:
            return self.nodes.either([self.of_type(name, schema, place) for name in types_of(schema, place)])
        keyword = found[0]
        beside = set(schema) - ANNOTATIONS - {keyword} - ({"type"} if keyword in ("enum", "const") else set())
        if beside:
            raise problem(place, f"{escape(min(beside))} is not supported beside {keyword}; put it inside")
        match keyword:
            case "$ref":
                return self.reference(schema["$ref"], place)
            case "enum" | "const":
                return self.literals(schema, place)
        options = list_of(schema, keyword, place)
        if keyword == "allOf" and len(options) > 1:
            raise problem(place, "allOf of several schemas is not supported; make them one")
        return self.nodes.either([self.value(each, f"{place}/{keyword}/{n}") for n, each in enumerate(options)])

    def reference(self, reference: Any, place: str) -> Part:
        """Add a value of a schema that stands elsewhere in the whole."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise problem(place, "$ref is supported within the schema only, as #/$defs/NAME")
        if reference in self.open_references or reference in ("#", "#/"):
            raise problem(place, f"$ref {escape(reference)} is recursive, which is not supported; unroll it")
        target = self.root
        for step in unquote(reference).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdecimal() and len(step) < 9 and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, dict) and step in target:
                target = target[step]
            else:
                raise problem(place, f"$ref {escape(reference)} leads nowhere")
        self.open_references.append(reference)
        part = self.value(target, reference)
        self.open_references.pop()
        return part

    def literals(self, schema: dict[str, Any], place: str) -> Part:
        """Add the values of an enum or a const that have the type."""
        values = list_of(schema, "enum", place) if "enum" in schema else [schema["const"]]
        types = types_of(schema, place) if "type" in schema else TYPES
        texts = [json_bytes(each, place) for each in values if any(has_type(each, name) for name in types)]
        if not texts:
            raise problem(place, "no value of the enum or const has the type")
        return self.nodes.either([self.nodes.text(text) for text in dict.fromkeys(texts)])

    def of_type(self, name: str, schema: dict[str, Any], place: str) -> Part:
        """Add a value of one type."""
        match name:
            case "object":
                return self.object(schema, place)
            case "array":
                return self.array(schema, place)
            case "string":
                return self.string(schema, place)
            case "boolean":
                return self.nodes.either([self.nodes.text(b"true"), self.nodes.text(b"false")])
            case "null":
                return self.nodes.text(b"null")
            case _:
                pattern = _number_pattern(schema, place, whole=name == "integer")
                return add_pattern(pattern, self.nodes, self.nodes.characters)

    # --------------------------------------------------------------------------------------------------- containers

    def object(self, schema: dict[str, Any], place: str) -> Part:
        """Add an object: the properties in their order, those that are not required left out or not."""
        nodes = self.nodes
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise problem(place, "properties must be an object, and required a list")
        for name in required:
            if not isinstance(name, str) or (name not in properties and others is False):
                raise problem(place, f"required {escape(str(name))} is no property")
        properties = properties | {name: others for name in required if name not in properties}
        required = set(required)
        least, most = bounds_of(schema, "minProperties", "maxProperties", place)
        if least > len(required) or (most is not None and most < len(properties or [0])):
            raise problem(place, "minProperties and maxProperties are not supported; use required")
        if not properties:
            return self.map(others, place)
        members = [
            (name in required, self.member(nodes.text(json_bytes(name, place)), each, f"{place}/properties/{name}"))
            for name, each in properties.items()
            if each is not False or name in required
        ]
        return self.members(members)

    def members(self, members: Sequence[tuple[bool, Part]]) -> Part:
        """Add an object of members, each required or not: two ways lead past them, before and after the first that is
        written, which differ by the comma."""
        nodes = self.nodes
        opening, closing = nodes.text(b"{"), nodes.text(b"}")
        fresh: int | None = opening[1]  # where nothing is written yet; None where something must be
        begun: int | None = None  # where something is
        for required, (first, last) in members:
            after = nodes.add()
            nodes.empty[last].append(after)
            if fresh is not None:
                nodes.empty[fresh].append(first)
            if begun is not None:
                comma = self.punctuation(b",")
                nodes.empty[begun].append(comma[0])
                nodes.empty[comma[1]].append(first)
                if not required:
                    nodes.empty[begun].append(after)
            fresh, begun = None if required else fresh, after
        for end in (fresh, begun):
            if end is not None:
                nodes.empty[end].append(closing[0])
        return opening[0], closing[1]

    def map(self, schema: Any, place: str) -> Part:
        """Add an object of any names with values of one schema."""
        nodes = self.nodes
        if schema is False:
            return nodes.text(b"{}")
        member = self.member(self.characters(0, None), schema, f"{place}/additionalProperties")
        inside = nodes.optional(nodes.repeated(member, self.punctuation(b",")))
        return nodes.sequence(nodes.text(b"{"), inside, nodes.text(b"}"))

    def member(self, name: Part, schema: Any, place: str) -> Part:
        return self.nodes.sequence(name, self.punctuation(b":"), self.value(schema, place))

    def array(self, schema: dict[str, Any], place: str) -> Part:
        """Add an array of items."""
        least, most = bounds_of(schema, "minItems", "maxItems", place)
        if schema.get("uniqueItems") and (most is None or most > 1):
            raise problem(place, "uniqueItems is not supported; leave it out")
        if "prefixItems" in schema:
            each = list_of(schema, "prefixItems", place)
            if not least == most == len(each):
                raise problem(place, "prefixItems is supported where minItems and maxItems are their number")
            return self.items(lambda n: self.value(each[n], f"{place}/prefixItems/{n}"), least, most)
        items = schema.get("items", True)
        return self.items(lambda _: self.value(items, f"{place}/items"), least, most)

    def items(self, item: Callable[[int], Part], least: int, most: int | None) -> Part:
        """Add an array of `least` to `most` items, each made by its number."""
        nodes = self.nodes
        opening, closing = nodes.text(b"["), nodes.text(b"]")
        end = opening[1]
        for number in range(max(least, 1) if most is None else most):
            if number >= least:
                nodes.empty[end].append(closing[0])
            part = item(number)
            if number == max(least, 1) - 1 and most is None:  # the last one, as often as wanted
                part = nodes.repeated(part, self.punctuation(b","))
            if number:
                part = nodes.sequence(self.punctuation(b","), part)
            nodes.empty[end].append(part[0])
            end = part[1]
        nodes.empty[end].append(closing[0])
        return opening[0], closing[1]

    def punctuation(self, mark: bytes) -> Part:
        return self.nodes.sequence(self.nodes.text(mark), self.nodes.optional(self.nodes.text(b" ")))

    def anything(self, depth: int) -> Part:
        """Add any value, with arrays and objects up to `depth` in one another."""
        nodes = self.nodes
        scalars = [self.characters(0, None), add_pattern(NUMBER, self.nodes, self.nodes.characters)]
        scalars += [nodes.text(word) for word in (b"true", b"false", b"null")]
        if not depth:
            return nodes.either(scalars)
        values = nodes.repeated(self.anything(depth - 1), self.punctuation(b","))
        array = nodes.sequence(nodes.text(b"["), nodes.optional(values), nodes.text(b"]"))
        member = nodes.sequence(self.characters(0, None), self.punctuation(b":"), self.anything(depth - 1))
        members = nodes.optional(nodes.repeated(member, self.punctuation(b",")))
        return nodes.either([*scalars, array, nodes.sequence(nodes.text(b"{"), members, nodes.text(b"}"))])

    # ----------------------------------------------------------------------------------------------------- strings

    def string(self, schema: dict[str, Any], place: str) -> Part:
        """Add a string, quoted."""
        least, most = bounds_of(schema, "minLength", "maxLength", place)
        pattern = schema.get("pattern")
        if "format" in schema:
            named = schema["format"]
            if pattern is not None or not isinstance(named, str) or named not in FORMATS:
                wanted = ", ".join(FORMATS)
                raise problem(place, f"format {escape(str(named))} is not supported; there are {wanted}")
            pattern = FORMATS[named]
        if pattern is None:
            return self.characters(least, most)
        if least or most is not None or not isinstance(pattern, str):
            raise problem(place, "pattern wants a text, and no minLength or maxLength beside it")
        return self.quoted(add_pattern(pattern, self.nodes, self.escaped))

    def characters(self, least: int, most: int | None) -> Part:
        """Add a string of `least` to `most` characters."""
        nodes = self.nodes
        first = last = nodes.add()
        ends = []
        for number in range(least if most is None else most):
            if number >= least:
                ends.append(last)
            part = self.escaped(_ANY_CHARACTER)
            nodes.empty[last].append(part[0])
            last = part[1]
        if most is None:
            part = self.escaped(_ANY_CHARACTER)
            nodes.empty[last].append(part[0])
            nodes.empty[part[1]].append(last)
        final = nodes.add()
        for end in (*ends, last):
            nodes.empty[end].append(final)
        return self.quoted((first, final))

    def quoted(self, part: Part) -> Part:
        return self.nodes.sequence(self.nodes.text(b'"'), part, self.nodes.text(b'"'))

    def escaped(self, ranges: Ranges) -> Part:
        """Add one character of some ranges as it stands in a JSON string."""
        nodes = self.nodes
        plain = [
            (max(low, first), min(high, last))
            for low, high in ranges
            for first, last in _UNESCAPED
            if max(low, first) <= min(high, last)
        ]
        others = [code for code in (*range(0x20), 0x22, 0x5C) if any(low <= code <= high for low, high in ranges)]
        texts = [_SHORT_ESCAPES.get(code, b"\\u%04x" % code) for code in others]
        parts = [nodes.characters(plain)] if plain else []
        if texts:
            parts.append(nodes.ranges([[(byte, byte) for byte in text] for text in texts]))
        return nodes.either(parts)


def _number_pattern(schema: dict[str, Any], place: str, *, whole: bool) -> str:
    """Return the pattern of the numbers between the bounds of a schema."""
    if not (schema.get("multipleOf") is None or (whole and schema["multipleOf"] == 1)):
        raise problem(place, "multipleOf is not supported; leave it out")
    given = {name: schema[name] for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
             if name in schema}  # fmt: skip
    if not given:
        return INTEGER if whole else NUMBER
    for name, bound in given.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not abs(bound) <= LARGEST:
            raise problem(place, f"{name} must be a number of up to 15 digits")
        if not whole and bound != int(bound):
            raise problem(place, f"{name} {bound} is not supported: a number's bounds must be whole")
        if not whole and name.startswith("exclusive") and abs(bound) > LARGEST_OPEN_BOUND:
            raise problem(place, f"{name} {bound} is not supported: more than {LARGEST_OPEN_BOUND}")
    lows = [(math.ceil(given.get("minimum", -LARGEST)), False)]
    highs = [(math.floor(given.get("maximum", LARGEST)), False)]
    if "exclusiveMinimum" in given:
        lows.append((math.floor(given["exclusiveMinimum"]) + whole, not whole))
    if "exclusiveMaximum" in given:
        highs.append((math.ceil(given["exclusiveMaximum"]) - whole, not whole))
    low, above_low = max(lows)
    high, below_high = min(highs, key=lambda bound: (bound[0], not bound[1]))
    if low > high or (low == high and (above_low or below_high)):
        raise problem(place, "no number lies between its bounds")
    return integers(low, high) if whole else decimals(low, high, above_low=above_low, below_high=below_high)
