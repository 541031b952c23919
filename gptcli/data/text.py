"""Inputs named by the user -> documents, as bounded pieces of text. Standard library only.

    inputs ─ find_sources ─> Source ─ read_pieces ─> Piece(text, starts_document, raw_bytes)
    inside read_pieces:  bytes ─ gunzip ─> blocks ─ decode ─> text ─ cut ─> parts ─> pieces

A text file is one document, a JSONL record is one document. Memory is bounded for an input of any size, and for one
line of any length: a few blocks of PIECE_BYTES, in a JSONL file a few times its longest line (MAX_LINE_BYTES at most).
"""

import codecs
import difflib
import errno
import glob
import hashlib
import json
import os
import re
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from gptcli.display import shown
from gptcli.errors import ConfigError, DataError, GptcliError

PIECE_BYTES = 1 << 20  # characters of a piece at most, and bytes read at a time
MAX_LINE_BYTES = 64 << 20  # of a JSONL line; a JSON parser needs the whole line in memory
HEAD_BYTES = 8 << 10  # looked at to tell text from other kinds of file

_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_TEXT_SUFFIXES = (".txt", ".md", ".text", ".rst", *_JSONL_SUFFIXES)
# Begins with the space, for the search to run at the speed of memchr; the class holds a few numerals beside letters.
_WORD_START = re.compile(r" (?<=\S )(?=[^\W\d_])")
_GZIP_MAGIC = b"\x1f\x8b"
_NOT_TEXT = (  # first bytes, kind, what to do
    (rb"\x28\xb5\x2f\xfd", "zstd data", "zstd -dc FILE | gptcli ... -"),
    (rb"\xfd7zXZ\x00", "xz data", "xz -dc FILE | gptcli ... -"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "bzip2 data", "bzip2 -dc FILE | gptcli ... -"),
    (rb"\x1f\x8b", "gzip data inside gzip data", "gzip -dc FILE | gptcli ... -"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive", "unzip -p FILE | gptcli ... -"),
    (rb"PAR1[^\t\r\n -~]", "a Parquet file", "write its text column as JSONL first"),
    (rb"%PDF-", "a PDF document", "pdftotext FILE - | gptcli ... -"),
    (rb"\x7fELF", "an ELF program", "name a text file"),
    (rb"\x89PNG", "a PNG image", "name a text file"),
)
_JSON_TYPES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
}
_BYTE_ORDER_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Python's codecs for host names and source literals: no file is written in them, and they can yield lone surrogates.
_NOT_FOR_FILES = {"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "utf-7"}


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How inputs are read: the JSONL field that holds the text, the encoding, and what becomes of undecodable bytes."""

    field: str = "text"
    encoding: str = "utf-8"
    errors: Literal["strict", "replace", "ignore"] = "strict"


@dataclass(frozen=True)
class Source:
    """One file, or a stream (standard input, a FIFO, a device), to read.

    `stream` is the decompressed content of a stream, opened to see what it is; the first read takes it out.
    """

    name: str  # for messages, safe to show
    path: Path | None  # None: standard input
    kind: Literal["text", "jsonl"]
    compressed: bool  # gzip, by its first bytes
    stream: list[Iterator[bytes]] | None = field(default=None, repr=False, compare=False)


class Piece(NamedTuple):
    """A stretch of one document.

    `raw_bytes` are the decompressed bytes of the source that it took, JSON syntax and skipped lines before it included:
    exact in sum over a source, within a block of PIECE_BYTES shared out by characters. Text is empty only in the last
    piece of a source, where bytes without text are left over (blank lines, empty documents, a byte order mark); that
    piece starts no document.
    """

    text: str
    starts_document: bool
    raw_bytes: int


# ------------------------------------------------------------------------------------------------ finding the sources


def find_sources(inputs: Sequence[str], options: TextOptions) -> list[Source]:
    """The files and streams that the inputs stand for, in order, each real file once.

    An input is a file, a directory (all text files below, sorted, hidden ones skipped), a glob pattern (the files it
    matches, sorted) or `-`. The first bytes of each are checked. Raises one error with every problem found, of the
    kind of the first: ConfigError for a name, GptcliError for a file that cannot be read, DataError for its content.
    """
    _codec_name(options)
    if not inputs:
        raise ConfigError("no input; name a file, or - for standard input")
    if inputs.count("-") > 1:
        raise ConfigError("-: standard input can be read only once; name it once")
    sources: dict[str, Source] = {}
    found_wrong: list[GptcliError] = []
    for given in inputs:
        try:
            paths = _expand(given)
        except GptcliError as error:
            found_wrong.append(error)
            continue
        for path in paths:
            real = "-" if path is None else os.path.realpath(path)
            try:
                if real not in sources:
                    sources[real] = _inspect(path, options)
            except GptcliError as error:
                found_wrong.append(error)
    if found_wrong:
        raise type(found_wrong[0])(*dict.fromkeys(problem for error in found_wrong for problem in error.problems))
    return list(sources.values())


def _expand(given: str) -> Sequence[Path | None]:
    """The files and streams that one input stands for."""
    if given == "-":
        return [None]
    try:
        mode = os.stat(given).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _matching_files(given)
    except OSError as error:
        raise _unreadable(shown(given), error) from None
    except ValueError:  # a NUL, or a surrogate that stands for no byte
        raise ConfigError(f"{shown(given)}: no such file") from None
    return _text_files_below(given) if stat.S_ISDIR(mode) else [Path(given)]


def _matching_files(pattern: str) -> list[Path]:
    """The files, not directories, that a glob pattern matches, sorted."""
    if any(character in pattern for character in "*?["):
        if found := [Path(name) for name in glob.glob(pattern, recursive=True) if not os.path.isdir(name)]:
            return sorted(found)
        raise ConfigError(f"{shown(pattern)}: no file matches")
    if os.path.islink(pattern):
        raise ConfigError(f"{shown(pattern)}: link to a missing file, '{shown(os.readlink(pattern))}'")
    directory, name = os.path.split(pattern)
    try:
        near = difflib.get_close_matches(name, os.listdir(directory or "."), n=1)
    except OSError:
        near = []
    hint = f"; did you mean '{shown(os.path.join(directory, near[0]))}'?" if near else ""
    raise ConfigError(f"{shown(pattern) or repr(pattern)}: no such file{hint}")


def _text_files_below(directory: str) -> list[Path]:
    """Every file with a text suffix below a directory, sorted; links to directories are followed, each one once."""
    found: list[Path] = []
    errors: list[OSError] = []
    visited = set()
    for parent, directories, names in os.walk(directory, onerror=errors.append, followlinks=True):
        if os.path.realpath(parent) in visited:
            directories.clear()
            continue
        visited.add(os.path.realpath(parent))
        directories[:] = [name for name in directories if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".") and _has_suffix(name, _TEXT_SUFFIXES)]
        # A FIFO or a socket in the tree is nobody's corpus; a broken link is kept, to be reported.
        found += [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    if errors:
        raise GptcliError(*(str(_unreadable(shown(error.filename), error)) for error in errors))
    if not found:
        raise DataError(f"{shown(directory)}: no text files below; want {' '.join(_TEXT_SUFFIXES)}, or these with .gz")
    return sorted(found)


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().removesuffix(".gz").endswith(suffixes)


def _inspect(path: Path | None, options: TextOptions) -> Source:
    """The source at a path, its first bytes checked; a stream stays open, and keeps the bytes that were looked at."""
    name = "stdin" if path is None else shown(str(path))
    opened = _raw_blocks(path, name)
    head, blocks = _peek(opened, lambda head: len(head) >= len(_GZIP_MAGIC))
    compressed = head.startswith(_GZIP_MAGIC)
    content = _gunzip(blocks, name) if compressed else blocks
    head, content = _peek(content, lambda head: len(head) >= HEAD_BYTES)
    _check_head(head, name, options)
    is_jsonl = path is not None and _has_suffix(path.name, _JSONL_SUFFIXES)
    if path is not None and os.path.isfile(path):
        opened.close()
        return Source(name, path, "jsonl" if is_jsonl else "text", compressed)
    if not head:
        raise DataError(f"{name}: no input; pipe text in")
    if not is_jsonl and _after_space(head).startswith(b"{"):
        head, content = _peek(content, lambda head: b"\n" in _after_space(head) or len(head) > MAX_LINE_BYTES)
        is_jsonl = _starts_with_object(head, options)
    return Source(name, path, "jsonl" if is_jsonl else "text", compressed, [content])


def _after_space(head: bytes | bytearray) -> bytes | bytearray:
    return head.removeprefix(codecs.BOM_UTF8).lstrip()


def _starts_with_object(head: bytes, options: TextOptions) -> bool:
    """Whether the first line that is not blank is a JSON object."""
    line = _after_space(head).split(b"\n", 1)[0]
    try:
        return isinstance(json.loads(line.decode(options.encoding, "replace")), dict)
    except (ValueError, RecursionError):
        return False


def _check_head(head: bytes, name: str, options: TextOptions) -> None:
    """Raises DataError if the first bytes are those of no text, or of text in another encoding than the given."""
    codec = _codec_name(options)
    for magic, kind, advice in _NOT_TEXT:
        if re.match(magic, head):
            raise DataError(f"{name}: is {kind}, not text; {advice}")
    if encoding := next((encoding for mark, encoding in _BYTE_ORDER_MARKS if head.startswith(mark)), None):
        if not codec.startswith(encoding):
            what = f"begins with the byte order mark of {encoding.upper()}"
            raise DataError(f"{name}: {what}; pass --encoding {encoding}")
        return
    if not codec.startswith(("utf-16", "utf-32")) and (offset := head.find(b"\0", 0, HEAD_BYTES)) >= 0:
        raise DataError(f"{name}: looks binary (NUL byte at offset {offset}); name a text file, or pass its --encoding")


def _codec_name(options: TextOptions) -> str:
    """Python's name of the encoding; utf-8 for utf-8-sig, as a byte order mark is dropped in any case."""
    try:
        "".encode(options.encoding)  # refuses what is no text encoding, such as hex
        name = codecs.lookup(options.encoding).name
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        name = "undefined"
    if name in _NOT_FOR_FILES:
        raise ConfigError(f"unknown encoding '{shown(options.encoding)}'; try utf-8, utf-16, latin-1, cp1252, gb18030")
    return "utf-8" if name == "utf-8-sig" else name


# ------------------------------------------------------------------------------------------------------ bytes to text


def _unreadable(name: str, error: OSError) -> GptcliError:
    """What to tell the user about a failed system call."""
    match error.errno:
        case errno.ELOOP:
            return ConfigError(f"{name}: symbolic link loop")
        case errno.ENOENT:
            return ConfigError(f"{name}: no such file")
        case errno.EACCES | errno.EPERM:
            return GptcliError(f"{name}: permission denied (need read)")
    return GptcliError(f"{name}: cannot be read ({error.strerror or error})")


def _raw_blocks(path: Path | None, name: str) -> Generator[bytes]:
    """The bytes of a file, or of standard input (None), in blocks. Never waits for a person to type."""
    if path is None and (sys.stdin is None or sys.stdin.closed):
        raise ConfigError("stdin is closed; name a file or pipe text in")
    try:
        with nullcontext(sys.stdin.buffer) if path is None else open(path, "rb", buffering=0) as file:
            if file.isatty():
                raise ConfigError(f"{name} is a terminal; name a file or pipe text in")
            while (block := file.read(PIECE_BYTES)) != b"":
                if block is None:  # a stream in non-blocking mode is not at its end
                    raise BlockingIOError(errno.EAGAIN, "no data is ready, and it is set not to wait for it")
                yield block
    except OSError as error:
        raise _unreadable(name, error) from None


def _gunzip(blocks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Decompresses gzip members, one after another, in blocks however well they are compressed."""
    member, total_bytes = zlib.decompressobj(wbits=31), 0
    for block in blocks:
        while block:
            if member.eof:
                block = block.lstrip(b"\0")  # padding of tape and disk blocks, as gzip allows it
                if not block:
                    break
                member = zlib.decompressobj(wbits=31)
            try:
                output = member.decompress(block, PIECE_BYTES)
            except zlib.error as error:
                reason = str(error).rpartition(": ")[2]
                raise DataError(f"{name}: gzip data is corrupt ({reason}); copy or compress the file again") from None
            total_bytes += len(output)
            if output:
                yield output
            block = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise DataError(f"{name}: ends early after {total_bytes} bytes; the gzip file is cut short, copy it again")


def _peek(blocks: Iterator[bytes], enough: Callable[[bytearray], bool]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, as many as it takes to be enough or all, and an iterator over all blocks, those included."""
    head, seen = bytearray(), []
    for block in blocks:
        head += block
        seen.append(block)
        if enough(head):
            break
    return bytes(head), chain(seen, blocks)


def _content(source: Source) -> Iterator[bytes]:
    """The decompressed blocks of a source."""
    if source.stream is not None:
        if not source.stream:
            raise GptcliError(f"{source.name}: can be read only once; save it to a file and name that")
        return source.stream.pop()
    blocks = _raw_blocks(source.path, source.name)
    return _gunzip(blocks, source.name) if source.compressed else blocks


class _Decoder:
    """Blocks of bytes to text, newlines kept as they are; knows the line and column (from 1) of an undecodable byte."""

    def __init__(self, name: str, options: TextOptions) -> None:
        self._name = name
        self._codec_name = _codec_name(options)
        self._codec = codecs.getincrementaldecoder(self._codec_name)(options.errors)
        self._drops_mark = self._codec_name == "utf-8"
        self._line, self._column = 1, 1  # of the next character

    def decode(self, block: bytes, *, final: bool = False) -> str:
        """The text of the next block. Raises DataError that places the first undecodable byte."""
        before = self._codec.getstate()
        try:
            try:
                return self._placed(self._codec.decode(block, final))
            except UnicodeDecodeError as error:
                self._codec.setstate(before)
                self._placed(self._codec.decode(error.object[len(before[0]) : error.start]))
                byte, codec = error.object[error.start], self._codec_name.upper()
        except UnicodeError:  # of UTF-16 and UTF-32: the byte order is neither marked in the file nor part of the name
            codec = self._codec_name
            raise DataError(f"{self._name}: no byte order mark; pass --encoding {codec}-le or {codec}-be") from None
        what = f"byte 0x{byte:02x} at column {self._column} is not {codec}"
        raise DataError(f"{self._name}:{self._line}: {what}; pass --encoding latin-1 or --errors replace")

    def _placed(self, text: str) -> str:
        """The text without a byte order mark; moves line and column past it."""
        if self._drops_mark and text:
            text, self._drops_mark = text.removeprefix("\ufeff"), False
        if newlines := text.count("\n"):
            self._line += newlines
            self._column = len(text) - text.rfind("\n")
        else:
            self._column += len(text)
        return text


def _decoded_blocks(source: Source, options: TextOptions) -> Iterator[tuple[str, int]]:
    """The text of each block of a source, with the bytes of the block."""
    decoder = _Decoder(source.name, options)
    for block in _content(source):
        yield decoder.decode(block), len(block)
    yield decoder.decode(b"", final=True), 0


# ----------------------------------------------------------------------------------------------------- text to pieces


def split_text(text: str, limit: int) -> Iterator[str]:
    """Cuts a text into pieces of at most `limit` characters whose concatenation it is; at least one, for "" too.

    A cut goes just before a single space between a non-whitespace character and a letter, where there is one in the
    first `limit` characters: there the split patterns of GPT-2, GPT-4 (cl100k), Llama 3 and Qwen 2 always begin a new
    word, and look no further ahead, so that byte-level BPE gives the pieces the ids it gives the whole.
    """
    start = 0
    while len(text) - start > limit:
        cut = _last_word_start(text, start + 1, start + limit)
        # Without a place to cut (a megabyte of one word, of digits, of Chinese) the cut is hard: the ids may differ
        # from those of the whole at this one border, but the text is the same.
        end = cut if cut > start else start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def _last_word_start(text: str, start: int, end: int) -> int:
    """The last index in [start, end) of a single space between a non-whitespace character and a letter, or -1."""
    width = 1 << 10
    while start < end:  # backwards in windows that grow: mostly the first one has a word, a table of digits has none
        low = max(start, end - width)
        spaces = [match.start() for match in _WORD_START.finditer(text, low, end + 1)]
        if found := [space for space in spaces if text[space + 1].isalpha()]:
            return found[-1]
        end, width = low, width * 4
    return -1


def _parts(blocks: Iterable[tuple[str, int]], cut: Callable[[str], Iterable[str]]) -> Iterator[tuple[str, int]]:
    """The text of all blocks as `cut` divides it, each part with the bytes it took, the last part "" if need be.

    What `cut` leaves as its last part is put before the next block; a line of JSONL that has grown beyond
    MAX_LINE_BYTES without an end is given out as it is, for the reader to refuse.
    """
    rest, taken_bytes, read_bytes = "", 0, 0
    for text, block_bytes in blocks:
        end = -len(rest)  # of a part, in characters from the start of this block
        *parts, rest = cut(rest + text)
        for part in parts:
            end += len(part)
            part_bytes = max(0, read_bytes + block_bytes * end // len(text) - taken_bytes)
            yield part, part_bytes
            taken_bytes += part_bytes
        read_bytes += block_bytes
        if len(rest) > PIECE_BYTES and read_bytes - taken_bytes > MAX_LINE_BYTES:
            yield rest, read_bytes - taken_bytes
            rest, taken_bytes = "", read_bytes
    yield rest, read_bytes - taken_bytes


def _split_lines(text: str) -> list[str]:
    """The lines with their newline; what follows the last newline comes last, "" if nothing."""
    *lines, rest = text.split("\n")
    return [*(line + "\n" for line in lines), rest]


def read_pieces(source: Source, options: TextOptions) -> Iterator[Piece]:
    """The pieces of a source's documents, in order. Raises DataError where its content is not what it must be."""
    blocks = _decoded_blocks(source, options)
    parts = _text_parts(blocks) if source.kind == "text" else _record_parts(blocks, source.name, options.field)
    owed_bytes = 0  # of parts without text
    for text, starts_document, part_bytes in parts:
        owed_bytes += part_bytes
        if text:
            yield Piece(text, starts_document, owed_bytes)
            owed_bytes = 0
    if owed_bytes:
        yield Piece("", False, owed_bytes)


def read_lines(source: Source, options: TextOptions) -> Iterator[str]:
    """The lines of a source with their newline, in order; DataError where one is too long to be a record."""
    for number, (line, line_bytes) in enumerate(_parts(_decoded_blocks(source, options), _split_lines), start=1):
        if line_bytes > MAX_LINE_BYTES:
            raise DataError(f"{source.name}:{number}: line is longer than {MAX_LINE_BYTES >> 20} MiB; split the record")
        if line:
            yield line


def _text_parts(blocks: Iterable[tuple[str, int]]) -> Iterator[Piece]:
    """The pieces of a text file, an empty one where a part has no text."""
    for index, (text, part_bytes) in enumerate(_parts(blocks, lambda text: split_text(text, PIECE_BYTES))):
        yield Piece(text, index == 0, part_bytes)


def _record_parts(blocks: Iterable[tuple[str, int]], name: str, field: str) -> Iterator[Piece]:
    """The pieces of JSONL records, an empty one for a blank line or an empty text."""
    for number, (line, line_bytes) in enumerate(_parts(blocks, _split_lines), start=1):
        place = f"{name}:{number}"
        if line_bytes > MAX_LINE_BYTES:
            raise DataError(f"{place}: line is longer than {MAX_LINE_BYTES >> 20} MiB; split the record")
        line = line.rstrip(" \t\r\n")  # the white space of JSON
        text = _record_text(line, place, field) if line else ""
        for index, piece in enumerate(split_text(text, PIECE_BYTES)):
            yield Piece(piece, index == 0, 0 if index else line_bytes)


def _record_text(line: str, place: str, field: str) -> str:
    """The text of one JSONL record. Raises DataError that begins with `place`."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON (column {error.pos + 1}: {error.msg})") from None
    except RecursionError:
        raise DataError(f"{place}: JSON is nested too deeply to be read") from None
    except ValueError:
        raise DataError(f"{place}: a number has more than {sys.get_int_max_str_digits()} digits") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: record is {_json_type(record)}, want an object with the field '{shown(field)}'")
    if field not in record:
        names = shown(", ".join(f"'{key}'" for key in record)) or "no fields"
        raise DataError(f"{place}: no field '{shown(field)}'; it has {names}; pass --field")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{place}: field '{shown(field)}' is {_json_type(text)}, want a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a UTF-16 pair, which is no character
        what = f"lone surrogate {shown(text[error.start])} at character {error.start + 1}"
        raise DataError(f"{place}: field '{shown(field)}' has a {what}; mend or drop the record") from None
    return text


def _json_type(value: object) -> str:
    return _JSON_TYPES.get(type(value), "an object")


# ----------------------------------------------------------------------------------------------------- whole sources


def decompressed_bytes(source: Source) -> int:
    """The bytes of a source's content: a file's size, or for gzip what a pass over it counts. A stream has no size."""
    if source.path is None or source.stream is not None:
        raise GptcliError(f"{source.name}: the size of a stream is not known before it is read")
    if source.compressed:
        return sum(map(len, _content(source)))
    try:
        return source.path.stat().st_size
    except OSError as error:
        raise _unreadable(source.name, error) from None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as they are on disk, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(shown(os.fspath(path)), error) from None
