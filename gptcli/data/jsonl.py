"""JSON records: a line, or an element of an array, -> a dictionary and the text in its fields.

Every command reads records with these functions, so that each mistake has one wording. Standard library only.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from gptcli.base.errors import DataError
from gptcli.base.escape import escape

MAX_LINE_BYTES = 64 << 20  # of a record; a JSON parser needs the whole of it in memory
NEWLINE, WHITE_SPACE = "\n", " \t\r\n"  # the latter of JSON
MEND = "mend or drop the record"
_SURROGATE = re.compile("[\ud800-\udfff]")
_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
}
Errors = Literal["strict", "replace", "ignore"]


def parse_json(line: str, place: str) -> Any:
    """Return the value of a JSON text. DataError that begins with `place`."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise not_json(error, place) from None


def not_json(error: ValueError | RecursionError, place: str) -> DataError:
    """Return what to tell the user about a failure of the JSON parser."""
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{place}: not JSON (column {error.pos + 1}: {error.msg})")
    if isinstance(error, RecursionError):
        return DataError(f"{place}: JSON is nested too deeply to be read")
    return DataError(f"{place}: a number has more than {sys.get_int_max_str_digits()} digits")


def check_object(value: Any, place: str, field: str | None = None) -> dict[str, Any]:
    """Return a value that is an object. DataError for any other, naming the field that is wanted in it."""
    if isinstance(value, dict):
        return value
    wanted = f" with the field '{escape(field)}'" if field else ""
    raise DataError(f"{place}: record is {type_name(value)}, want an object{wanted}")


def parse_object(line: str, place: str) -> dict[str, Any]:
    """Return a JSON object that will be passed on: a number that JSON cannot hold (NaN, 1e999) becomes null."""
    try:
        return check_object(_PASSED_ON.decode(line), place)
    except (ValueError, RecursionError) as error:
        raise not_json(error, place) from None


def text_of(
    record: Mapping[str, Any], field: str, place: str, *, errors: Errors = "strict", advice: str = "", mend: str = MEND
) -> str:
    """Return the text in a field of a record. DataError where there is none, `advice` after it.

    A lone surrogate, half of a UTF-16 pair that JSON can spell and that is no character, becomes U+FFFD with errors
    `replace`, nothing with `ignore`, and is an error with `strict`.
    """
    if field not in record:
        names = escape(", ".join(f"'{key}'" for key in record)) or "no fields"
        raise DataError(f"{place}: no field '{escape(field)}'; it has {names}{advice}")
    text = record[field]
    if not isinstance(text, str):
        more = advice if isinstance(text, list) else ""
        raise DataError(f"{place}: field '{escape(field)}' must be text, got {described(text)}{more}")
    return clean_text(text, f"{place}: field '{escape(field)}'", errors=errors, mend=mend)


def clean_text(text: str, place: str, *, errors: Errors = "strict", mend: str = MEND) -> str:
    """Return a text without lone surrogates; `place` says whose it is. DataError where `errors` is strict."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            what = f"lone surrogate {escape(text[error.start])} at character {error.start + 1}"
            raise DataError(f"{place} has a {what}; {mend}") from None
        return _SURROGATE.sub("\ufffd" if errors == "replace" else "", text)
    return text


def type_name(value: Any) -> str:
    """Return the name of a JSON value's type, with its article."""
    return _TYPES.get(type(value), "an object")


def described(value: Any) -> str:
    """Return the type of a JSON value and, where it is short, the value."""
    name = type_name(value)
    return f"{name}, {escape(json.dumps(value), 40)}" if value not in (None, [], {}, "") else name


def decode_line(line: bytes, place: str) -> str:
    """Return a line of a stream as text. DataError where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise DataError(f"{place}: {byte} is not UTF-8; convert it, iconv -t utf-8") from None


def read_records(lines: Iterable[bytes], *, jsonl: bool, field: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of standard input as records with a text in `field`; blank lines of JSONL are passed over.

    DataError names a line that is not UTF-8, or not a record with the field.
    """
    for number, line in enumerate(lines, 1):
        place = f"stdin:{number}"
        text = decode_line(line, place).removesuffix("\n")
        if not jsonl:
            yield {field: text}
        elif line.strip():
            record = parse_object(text, place)
            text_of(record, field, place)
            yield record


def answered(record: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with an answer's fields; one of its own that has the name of an answer's becomes input_NAME."""
    return {f"input_{name}" if name in answer else name: value for name, value in record.items()} | dict(answer)


def array_elements(parts: Iterable[str], place: str, most_characters: int) -> Iterator[tuple[int, str, Any]]:
    """Yield (line, text, value) of each element of a JSON array that comes in parts.

    The texts are those of the whole array, each with what went before its element; what follows the last element comes
    at the end, with the value None. Memory is bounded by the longest element. DataError for a syntax error, or for an
    element longer than `most_characters`.
    """
    scan = _Scanner(iter(parts))
    if scan.next() != "[":
        raise DataError(f"{place}:1: not a JSON array")
    scan.at += 1
    line, number, following = 1, 0, ","
    if scan.next() == "]":
        scan.at += 1
        following = "]"
    while following == ",":
        scan.next()
        number += 1
        here = f"{place}:{line + scan.text.count(NEWLINE, scan.start, scan.at)}: item {number}"
        value = scan.value(here, most_characters)
        following = scan.next()
        if following not in (",", "]"):
            raise DataError(f"{here}: want , or ] after it, in an array of JSON")
        scan.at += 1
        text = scan.take()
        yield line, text, value
        line += text.count(NEWLINE)
    if scan.next():
        raise DataError(f"{place}:{line}: there is more after the array of JSON; write one array, or JSON lines")
    if rest := scan.take():
        yield line, rest, None


class _Scanner:
    """A text that comes in parts: given out up to `start`, read up to `at`."""

    def __init__(self, parts: Iterator[str]) -> None:
        self.text, self.start, self.at, self._parts = "", 0, 0, parts

    def grow(self, characters: int = 1) -> bool:
        """Append parts of so many characters in all; whether anything came."""
        parts = [self.text[self.start :]]
        while characters > 0 and (part := next(self._parts, None)) is not None:
            parts.append(part)
            characters -= len(part)
        self.at, self.start = self.at - self.start, 0
        self.text = "".join(parts)
        return len(parts) > 1

    def take(self) -> str:
        """Return what was read and not given out."""
        taken, self.start = self.text[self.start : self.at], self.at
        return taken

    def next(self) -> str:
        """Go to the next character that is no white space, and return it; "" at the end."""
        while True:
            if match := _SPACES.match(self.text, self.at):
                self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def value(self, place: str, most_characters: int) -> Any:
        """Read a JSON value and return it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                length = len(self.text) - self.at
                if isinstance(error, json.JSONDecodeError) and length <= most_characters and self.grow(max(1, length)):
                    continue
                if length > most_characters:
                    raise DataError(f"{place}: longer than {most_characters >> 20} MiB, or not JSON") from None
                if isinstance(error, json.JSONDecodeError):
                    raise DataError(f"{place}: not JSON ({error.msg})") from None
                raise not_json(error, place) from None
            length = end - self.at
            if end == len(self.text) and self.grow():  # a number may go on in the next part
                continue
            self.at += length
            return value


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


_SPACES = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_PASSED_ON = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite)
