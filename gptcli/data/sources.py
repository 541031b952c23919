"""Inputs named by the user -> sources, their first bytes checked."""

import codecs
import difflib
import glob
import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import shown
from gptcli.data.blocks import Source, TextOptions, codec_name, gunzip, peek, raw_blocks, unreadable

MAX_LINE_BYTES = 64 << 20  # of a JSONL line; a JSON parser needs the whole line in memory
HEAD_BYTES = 8 << 10  # looked at to tell text from other kinds of file

_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_TEXT_SUFFIXES = (".txt", ".md", ".text", ".rst", *_JSONL_SUFFIXES)
_MARKUP_SUFFIXES = (".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".html", ".htm")
GZIP_MAGIC = b"\x1f\x8b"
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
_BYTE_ORDER_MARKS = (  # that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def find_sources(inputs: Sequence[str], options: TextOptions) -> list[Source]:
    """The files and streams that the inputs stand for, in order, each real file once.

    An input is a file, a directory (all text files below, sorted, hidden ones skipped), a glob pattern (the files it
    matches, sorted) or `-`. The first bytes of each are checked. Raises one error with every problem found, of the
    kind of the first: ConfigError for a name, GptcliError for a file that cannot be read, DataError for its content.
    """
    codec_name(options)
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


def markup_notes(sources: Sequence[Source]) -> list[str]:
    """A line for every source whose name says that it is more than text, and that is read as text all the same."""
    return [
        f"{source.name}: read as plain text, its markup included; to train on one field of each record, write JSONL"
        for source in sources
        if source.kind == "text" and source.path is not None and _has_suffix(source.path.name, _MARKUP_SUFFIXES)
    ]


def _expand(given: str) -> Sequence[Path | None]:
    """The files and streams that one input stands for."""
    if given == "-":
        return [None]
    try:
        mode = os.stat(given).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _matching_files(given)
    except OSError as error:
        raise unreadable(shown(given), error) from None
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
        raise GptcliError(*(str(unreadable(shown(error.filename), error)) for error in errors))
    if not found:
        raise DataError(f"{shown(directory)}: no text files below; want {' '.join(_TEXT_SUFFIXES)}, or these with .gz")
    return sorted(found)


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().removesuffix(".gz").endswith(suffixes)


def _inspect(path: Path | None, options: TextOptions) -> Source:
    """The source at a path, its first bytes checked; a stream stays open, and keeps the bytes that were looked at."""
    name = "stdin" if path is None else shown(str(path))
    opened = raw_blocks(path, name)
    head, blocks = peek(opened, lambda head: len(head) >= len(GZIP_MAGIC))
    compressed = head.startswith(GZIP_MAGIC)
    content = gunzip(blocks, name) if compressed else blocks
    head, content = peek(content, lambda head: len(head) >= HEAD_BYTES)
    _check_head(head, name, options)
    is_jsonl = path is not None and _has_suffix(path.name, _JSONL_SUFFIXES)
    if path is not None and os.path.isfile(path):
        opened.close()
        return Source(name, path, "jsonl" if is_jsonl else "text", compressed)
    if not head:
        raise DataError(f"{name}: no input; name files or pipe text in")
    if not is_jsonl and _after_space(head).startswith(b"{"):
        head, content = peek(content, lambda head: b"\n" in _after_space(head) or len(head) > MAX_LINE_BYTES)
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
    codec = codec_name(options)
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
