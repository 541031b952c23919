"""The kind of a file, told by its first bytes: text, JSON lines, a JSON array, Parquet, or nothing to read.

Content decides. A name only breaks a tie: what is named .jsonl is JSON lines even where its first line is none.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import Any

from gptcli.base.errors import DataError
from gptcli.data.blocks import HEAD_BYTES, Kind, TextOptions, codec_name
from gptcli.data.compression import COMPRESSIONS, bare_name, compression_of
from gptcli.data.jsonl import WHITE_SPACE

TEXT_SUFFIXES = (".txt", ".md", ".text", ".rst")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines")
TABLE_SUFFIXES = (".csv", ".tsv")
MARKUP_SUFFIXES = (*TABLE_SUFFIXES, ".json", ".yaml", ".yml", ".xml", ".html", ".htm")

_PARQUET = rb"PAR1[^\t\r\n -~]"
_NOT_TEXT = (  # first bytes, kind, what to do
    *((found.magic, f"{found.name} data inside compressed data", "decompress it once more") for found in COMPRESSIONS),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive", "unzip -p FILE | gptcli ... -"),
    (rb"(?s).{257}ustar", "a tar archive", "tar xOf FILE | gptcli ... -"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x -so FILE | gptcli ... -"),
    (rb"Rar!\x1a\x07", "a RAR archive", "unrar p -inul FILE | gptcli ... -"),
    (rb"\x04\x22\x4d\x18", "lz4 data", "lz4 -dc FILE | gptcli ... -"),
    (rb"SQLite format 3\x00", "a SQLite database", "write its text column as JSONL first"),
    (rb"ARROW1\x00\x00", "an Arrow file", "write its text column as JSONL first"),
    (rb"Obj\x01", "an Avro file", "write its text column as JSONL first"),
    (rb"\x89HDF\r\n", "an HDF5 file", "write its text as JSONL first"),
    (rb"%PDF-", "a PDF document", "pdftotext FILE - | gptcli ... -"),
    (rb"\x7fELF", "an ELF program", "name a text file"),
    (rb"\x89PNG", "a PNG image", "name a text file"),
)
_BYTE_ORDER_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LIKE_JSON = re.compile(r'\ufeff?\s*(\[\s*["{\]]|\{\s*["}])')
_DECODER = json.JSONDecoder()


def has_suffix(name: str, suffixes: Sequence[str]) -> bool:
    """Return whether a file's name ends so, in letters of any case, a suffix of compression aside."""
    return bare_name(name).endswith(tuple(suffixes))


def check_head(head: bytes, name: str, options: TextOptions) -> None:
    """Raise DataError if the first bytes are those of no text, or of text in another encoding than the given."""
    codec = codec_name(options)
    for magic, kind, advice in _NOT_TEXT:
        if re.match(magic, head):
            raise DataError(f"{name}: is {kind}, not text; {advice}")
    if encoding := next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), None):
        if not codec.startswith(encoding):
            what = f"begins with the byte order mark of {encoding.upper()}"
            raise DataError(f"{name}: {what}; pass {options.setting('encoding', encoding)}")
        return
    if not codec.startswith(("utf-16", "utf-32")) and (offset := head.find(b"\0", 0, HEAD_BYTES)) >= 0:
        guess = _wide_encoding(head)
        advice = f"pass {options.setting('encoding', guess)}" if guess else "name a text file, or pass its --encoding"
        raise DataError(f"{name}: looks binary (NUL byte at offset {offset}); {advice}")


def _wide_encoding(head: bytes) -> str | None:
    """Return the UTF-16 or UTF-32 without a byte order mark that nearly every NUL byte of a text speaks for."""
    for encoding, width, zeros in (("utf-32-le", 4, (2, 3)), ("utf-32-be", 4, (0, 1)),
                                   ("utf-16-le", 2, (1,)), ("utf-16-be", 2, (0,))):  # fmt: skip
        units = len(head) // width
        if units >= 2 and all(head[at : units * width : width].count(0) > 0.7 * units for at in zeros):
            return encoding
    return None


def is_parquet(head: bytes) -> bool:
    return re.match(_PARQUET, head) is not None


def looks_like_json(head: bytes, options: TextOptions) -> bool:
    """Return whether a text begins as JSON does."""
    return _LIKE_JSON.match(head.decode(codec_name(options), "replace")) is not None


def kind_of(
    name: str, head: bytes, options: TextOptions, *, whole: bool, rows: bool = False, stream: bool = False
) -> Kind | None:
    """Return what a source holds, or None where more of its head is needed to tell; `whole` if there is no more.

    A first line that is a JSON object makes JSON lines where the object has the field that is read, or where a second
    line is an object as well; with `rows` and in a stream always. An array whose first element is an object or a
    string makes a JSON array.
    """
    if is_parquet(head) and compression_of(head) is None:
        return "parquet"
    text = head.decode(codec_name(options), "replace").removeprefix("\ufeff").lstrip(WHITE_SPACE)
    kind: Kind | None = "text"
    if text.startswith("["):
        kind = _array_kind(text, whole=whole)
        if kind == "text" and re.fullmatch(r"\[\s*\]\s*", text) and has_suffix(name, (".json", *JSONL_SUFFIXES)):
            kind = "json"
    elif text.startswith("{"):
        kind = _lines_kind(text, None if rows or stream else options.field, whole=whole)
    elif not text and not whole:
        kind = None
    return "jsonl" if kind == "text" and has_suffix(name, JSONL_SUFFIXES) else kind


def _array_kind(text: str, *, whole: bool) -> Kind | None:
    """Return whether a text that begins with [ is a JSON array of objects or strings."""
    inside = text[1:].lstrip(WHITE_SPACE)
    if not inside and not whole:
        return None
    if inside[:1] not in ("{", '"'):
        return "text"
    try:
        _, end = _DECODER.raw_decode(inside)
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos > len(inside) - 16
        return None if cut and not whole else "text"
    except (ValueError, RecursionError):
        return "text"
    following = inside[end:].lstrip(WHITE_SPACE)[:1]
    if not following:
        return "text" if whole else None
    return "json" if following in (",", "]") else "text"


def _lines_kind(text: str, field: str | None, *, whole: bool) -> Kind | None:
    """Return whether a text that begins with { is JSON lines. `field`: one that the first must have, or there are
    two."""
    first, newline, rest = text.partition("\n")
    if not newline and not whole:
        return None
    record = _object(first)
    if record is None:
        return "text"
    if field is None or field in record:
        return "jsonl"
    second, newline, _ = rest.lstrip(WHITE_SPACE).partition("\n")
    if not newline and not whole:
        return None
    return "text" if _object(second) is None else "jsonl"


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def has_field(head: bytes, kind: Kind, options: TextOptions) -> bool:
    """Return whether the first record of a source has the field that holds the text; a string in an array is its
    own."""
    text = head.decode(codec_name(options), "replace").removeprefix("\ufeff").lstrip(WHITE_SPACE)
    try:
        value, _ = _DECODER.raw_decode(text[1:].lstrip(WHITE_SPACE) if kind == "json" else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, str) or (isinstance(value, dict) and options.field in value)
