"""Inputs -> sources -> pieces: what is read, what is refused, and that pieces lose neither text nor token ids."""

import codecs
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import escape
from gptcli.data import blocks, jsonl, records, sources, split
from gptcli.data import text as text_module
from gptcli.data.text import (
    Piece,
    Source,
    TextOptions,
    decompressed_bytes,
    file_sha256,
    find_sources,
    read_pieces,
    split_text,
)

UTF8 = TextOptions()
FEW = settings(max_examples=100, deadline=None)


def set_limit(monkeypatch: pytest.MonkeyPatch, name: str, limit: int) -> None:
    """In every module that has it."""
    for module in (blocks, jsonl, records, sources, split, text_module):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, limit)


def find_one(path: Path | str, options: TextOptions = UTF8) -> Source:
    (source,) = find_sources([str(path)], options)
    return source


def pieces_of(path: Path | str, options: TextOptions = UTF8) -> list[Piece]:
    return list(read_pieces(find_one(path, options), options))


def documents_of(path: Path | str, options: TextOptions = UTF8) -> list[str]:
    documents: list[str] = []
    for piece in pieces_of(path, options):
        if piece.starts_document:
            documents.append(piece.text)
        elif piece.text:
            documents[-1] += piece.text
    return documents


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def in_subprocess(code: str, stdin: bytes | int) -> subprocess.CompletedProcess[bytes]:
    code = "from gptcli.data.text import *; from gptcli.base.errors import *\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", code]
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=20, **given)


READ_STDIN = """
    import json
    try:
        (source,) = find_sources(["-"], TextOptions())
        print(json.dumps([source.name, source.kind, source.compressed, list(read_pieces(source, TextOptions()))]))
    except GptcliError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


def read_stdin(stdin: bytes | int) -> list[object]:
    done = in_subprocess(READ_STDIN, stdin)
    assert done.returncode == 0, done.stderr.decode()
    result: list[object] = json.loads(done.stdout)
    return result


# ------------------------------------------------------------------------------------------------ finding the sources


def test_a_directory_stands_for_its_text_files_sorted_without_hidden_ones(tmp_path: Path) -> None:
    for name in ["b.txt", "a/z.JSONL", "a/y.md.gz", "c.rst", ".hidden.txt", ".git/x.txt", "picture.png", "d.text"]:
        write(tmp_path / name, "x")
    names = [str(source.path.relative_to(tmp_path)) for source in find_sources([str(tmp_path)], UTF8) if source.path]
    assert names == ["a/y.md.gz", "a/z.JSONL", "b.txt", "c.rst", "d.text"]


def test_a_directory_without_text_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "picture.png", "x")
    with pytest.raises(DataError, match=r"no text files below; want \.txt"):
        find_sources([str(tmp_path)], UTF8)


def test_links_to_directories_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "data/a.txt", "a")
    write(tmp_path / "elsewhere/b.txt", "b")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/other").symlink_to(tmp_path / "elsewhere")
    sources = find_sources([str(tmp_path / "data")], UTF8)
    assert [source.path.name for source in sources if source.path] == ["a.txt", "b.txt"]


def test_a_pattern_stands_for_the_files_it_matches_unless_it_names_a_file(tmp_path: Path) -> None:
    for name in ["b.txt", "a.txt", "sub/c.txt", "[x].txt"]:
        write(tmp_path / name, "x")
    (tmp_path / "directory.txt").mkdir()
    names = [source.path.name for source in find_sources([f"{tmp_path}/?.txt"], UTF8) if source.path]
    assert names == ["a.txt", "b.txt"]
    assert len(find_sources([f"{tmp_path}/**/*.txt"], UTF8)) == 4
    assert find_one(tmp_path / "[x].txt").name.endswith("[x].txt")
    with pytest.raises(ConfigError, match="no file matches"):
        find_sources([f"{tmp_path}/*.md"], UTF8)


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    (tmp_path / "link.txt").symlink_to(path)
    assert len(find_sources([str(path), str(tmp_path / "link.txt"), str(tmp_path), f"{tmp_path}/./a.txt"], UTF8)) == 1


def test_all_problems_are_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "corpus1.txt", "x")
    write(tmp_path / "b.txt", b"ab\0")
    Path("loop").symlink_to("loop")
    Path("broken.txt").symlink_to("nowhere")
    with pytest.raises(ConfigError) as caught:
        find_sources(["corpus.txt", "b.txt", "corpus1.txt", "loop", "broken.txt", "corpus1.txt/x", "n\0ul", ""], UTF8)
    assert caught.value.problems == (
        "corpus.txt: no such file; did you mean 'corpus1.txt'?",
        "b.txt: looks binary (NUL byte at offset 2); name a text file, or pass its --encoding",
        "loop: symbolic link loop",
        "broken.txt: link to a missing file, 'nowhere'",
        "corpus1.txt/x: no such file",
        "n\\x00ul: no such file",
        "'': no such file",
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error_at_run_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    with pytest.raises(GptcliError, match="permission denied") as caught:
        find_sources([str(path)], UTF8)
    assert caught.value.exit_code == 1


def test_names_are_escaped_in_messages(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\n\x1b[31m\xff\xe2\x80\xae.txt")
    write(tmp_path / name, b"\xff")
    with pytest.raises(DataError) as caught:
        pieces_of(tmp_path / name)
    assert r"a\n\x1b[31m\udcff\u202e.txt:1: byte 0xff" in str(caught.value)


def test_no_input_two_standard_inputs_and_unknown_encodings_are_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.txt", "x"))
    with pytest.raises(ConfigError, match="no input"):
        find_sources([], UTF8)
    with pytest.raises(ConfigError, match="only once"):
        find_sources(["-", "-"], UTF8)
    for encoding in ["utf-9", "hex", "rot13", "punycode", "unicode_escape", "utf_7", "undefined", "a\0", "\ud800", ""]:
        with pytest.raises(ConfigError, match="unknown encoding"):
            find_sources([path], TextOptions(encoding=encoding))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"PK\x03\x04\x14\0", r"is a zip archive"),
        (b"a.txt" + bytes(252) + b"ustar\x0000", r"is a tar archive, not text; tar xOf FILE \| gptcli \.\.\. -"),
        (b"7z\xbc\xaf\x27\x1c", r"is a 7z archive"),
        (b"SQLite format 3\0", r"is a SQLite database"),
        ("hé, text\n".encode("utf-16-le") * 9, r"NUL byte at offset 1\); pass --encoding utf-16-le"),
        ("hé, text\n".encode("utf-32-be") * 9, r"NUL byte at offset 0\); pass --encoding utf-32-be"),
        (b"%PDF-1.7", r"is a PDF document"),
        (b"\x7fELF\x02", r"is an ELF program"),
        (b"\x89PNG\r\n", r"is a PNG image"),
        (codecs.BOM_UTF16_LE + "hé".encode("utf-16-le"), r"byte order mark of UTF-16; pass --encoding utf-16"),
        (codecs.BOM_UTF32_LE + "hé".encode("utf-32-le"), r"byte order mark of UTF-32; pass --encoding utf-32"),
        (b"x" * 8191 + b"\0", r"NUL byte at offset 8191"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_not_text_is_named(tmp_path: Path, head: bytes, message: str, compressed: bool) -> None:
    path = write(tmp_path / "corpus.txt", gzip.compress(head) if compressed else head)
    with pytest.raises(DataError, match=message):
        find_sources([str(path)], UTF8)


@pytest.mark.parametrize("content", [b"BZh9 is how", b"PAR1 of the manual", b"x" * 8192 + b"\0", b"PK\n", b"{ \\x"])
def test_text_that_resembles_something_else_is_text(tmp_path: Path, content: bytes) -> None:
    assert documents_of(write(tmp_path / "a.txt", content)) == [content.decode()]


# ------------------------------------------------------------------------------------------------------------ streams


def test_standard_input_is_text_jsonl_or_gzip_by_its_content() -> None:
    assert read_stdin(b"a b\r\nc") == ["stdin", "text", False, [["a b\r\nc", True, 6]]]
    rows = b'\n {"text": "a"}\n{"text": "b"}'
    assert read_stdin(rows) == ["stdin", "jsonl", False, [["a", True, 16], ["b", True, 13]]]
    assert read_stdin(gzip.compress(rows)) == ["stdin", "jsonl", True, [["a", True, 16], ["b", True, 13]]]
    assert read_stdin(b"{not json}\nx") == ["stdin", "text", False, [["{not json}\nx", True, 12]]]
    assert read_stdin(b"") == ["DataError", "stdin: no input; name files or pipe text in"]


def test_standard_input_that_comes_in_drips_loses_nothing() -> None:
    read_end, write_end = os.pipe()

    def drip() -> None:
        with open(write_end, "wb", buffering=0) as stream:
            for byte in b'{"text": "drop by drop"}\n{"text": "b"}\n':
                stream.write(bytes([byte]))

    writer = threading.Thread(target=drip)
    writer.start()
    with open(read_end, "rb") as stdin:
        result = read_stdin(stdin.fileno())
    writer.join()
    assert result == ["stdin", "jsonl", False, [["drop by drop", True, 25], ["b", True, 14]]]


def test_a_terminal_is_not_waited_for() -> None:
    terminal, stdin = os.openpty()
    try:
        assert read_stdin(stdin) == ["ConfigError", "stdin is a terminal; name a file or pipe text in"]
    finally:
        os.close(terminal)
        os.close(stdin)


def test_a_fifo_is_read_as_a_stream_and_only_once(tmp_path: Path) -> None:
    fifo = tmp_path / "rows"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=[b'{"text": "a"}\n' * 3])
    writer.start()
    source = find_one(fifo)
    with pytest.raises(GptcliError, match="not known before it is read"):
        decompressed_bytes(source)
    assert [piece.text for piece in read_pieces(source, UTF8)] == ["a", "a", "a"]
    writer.join()
    with pytest.raises(GptcliError, match="can be read only once"):
        list(read_pieces(source, UTF8))


# --------------------------------------------------------------------------------------------------------------- text


def test_a_text_file_is_one_document_with_its_newlines_as_they_are(tmp_path: Path) -> None:
    content = "a\r\nb\rc\n\n\u2028d\x85 \ufeff"
    assert pieces_of(write(tmp_path / "a.txt", content)) == [Piece(content, True, len(content.encode()))]
    assert pieces_of(write(tmp_path / "empty.txt", "")) == []


def test_a_utf8_byte_order_mark_is_dropped_and_counted(tmp_path: Path) -> None:
    assert pieces_of(write(tmp_path / "a.txt", codecs.BOM_UTF8 + b"hi")) == [Piece("hi", True, 5)]
    assert pieces_of(write(tmp_path / "b.txt", codecs.BOM_UTF8)) == [Piece("", False, 3)]
    assert documents_of(write(tmp_path / "c.jsonl", codecs.BOM_UTF8 + b'{"text": "a"}')) == ["a"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be", "latin-1", "cp1252", "shift_jis", "utf-8-sig"])
def test_a_given_encoding_is_used(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limit(monkeypatch, "PIECE_BYTES", 7)
    content = "one line\nand two more\n" * 9 + ("日本" if encoding in ("shift_jis", "utf-16") else "±")
    options = TextOptions(encoding=encoding)
    pieces = pieces_of(write(tmp_path / "a.txt", content.encode(encoding)), options)
    assert "".join(piece.text for piece in pieces) == content
    assert sum(piece.raw_bytes for piece in pieces) == len(content.encode(encoding))
    rows = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in content.splitlines())
    assert documents_of(write(tmp_path / "a.jsonl", rows.encode(encoding)), options) == content.splitlines()


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_undecodable_byte_is_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, compress: Callable[[bytes], bytes]
) -> None:
    set_limit(monkeypatch, "PIECE_BYTES", piece_bytes)
    good = "a line\n" * 1041 + "日本 sixteen char"
    path = write(tmp_path / "corpus.txt", compress(codecs.BOM_UTF8 + good.encode() + b"\xff and more\n"))
    with pytest.raises(DataError) as caught:
        pieces_of(path)
    assert "corpus.txt:1042: byte 0xff at column 16 is not UTF-8; " in str(caught.value)


def test_a_character_across_blocks_before_the_undecodable_byte_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_limit(monkeypatch, "PIECE_BYTES", 2)
    with pytest.raises(DataError, match=r"a\.txt:1: byte 0xff at column 3 is not UTF-8"):
        pieces_of(write(tmp_path / "a.txt", "aé".encode() + b"\xff"))


def test_a_character_cut_off_by_the_end_is_placed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "ab\nc日".encode()[:-1])
    with pytest.raises(DataError, match=r"a\.txt:2: byte 0xe6 at column 2 is not UTF-8"):
        pieces_of(path)


def test_utf16_without_a_mark_needs_its_byte_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "ab".encode("utf-16-le"))
    with pytest.raises(DataError, match="no byte order mark; pass --encoding utf-16-le or --encoding utf-16-be"):
        pieces_of(path, TextOptions(encoding="utf-16"))
    with pytest.raises(DataError, match="looks binary"):
        pieces_of(path)
    assert documents_of(path, TextOptions(encoding="utf-16-le")) == ["ab"]


def test_undecodable_bytes_are_replaced_or_ignored_on_demand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"a\xffb\xe6")
    assert pieces_of(path, TextOptions(errors="replace")) == [Piece("a\ufffdb\ufffd", True, 4)]
    assert pieces_of(path, TextOptions(errors="ignore")) == [Piece("ab", True, 4)]


# --------------------------------------------------------------------------------------------------------------- gzip


def test_gzip_is_known_by_its_first_bytes_and_may_have_many_members(tmp_path: Path) -> None:
    members = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two") + bytes(512)
    source = find_one(write(tmp_path / "corpus.txt", members))
    assert source.compressed
    assert list(read_pieces(source, UTF8)) == [Piece("one two", True, 7)]
    assert decompressed_bytes(source) == 7
    assert not find_one(write(tmp_path / "plain.txt.gz", "not compressed")).compressed


def test_gzip_that_ends_early_says_after_how_many_bytes(tmp_path: Path) -> None:
    content = os.urandom(40_000).hex().encode()
    path = write(tmp_path / "corpus.gz", gzip.compress(content)[:-3000])
    with pytest.raises(DataError, match=r"corpus\.gz: ends early after \d+ bytes; ") as caught:
        pieces_of(path)
    (after,) = re.findall(r"after (\d+) bytes", str(caught.value))
    assert len(content) * 0.9 < int(after) < len(content)
    with pytest.raises(DataError, match="ends early after 0 bytes"):
        find_sources([str(write(tmp_path / "b.gz", b"\x1f\x8b"))], UTF8)


def test_corrupt_gzip_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"some text " * 1000))
    content[-5] ^= 1
    with pytest.raises(DataError, match=r"a\.gz: gzip data is corrupt \(incorrect data check\); copy"):
        pieces_of(write(tmp_path / "a.gz", bytes(content)))
    with pytest.raises(DataError, match="gzip data is corrupt"):
        find_sources([str(write(tmp_path / "b.gz", gzip.compress(b"a") + b"junk"))], UTF8)


# -------------------------------------------------------------------------------------------------------------- JSONL


def test_a_record_is_a_document_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    lines = [
        '{"text": "a\\nb"}',
        "",
        ' {"text": "", "x": NaN} \r',
        '{"text": "x", "text": "c", "n": -1e999}',
        " \t",
        "",
    ]
    pieces = pieces_of(write(tmp_path / "rows.ndjson", "\n".join(lines)))
    sizes = [len(line) + 1 for line in lines]
    assert pieces == [
        Piece("a\nb", True, sizes[0]),
        Piece("c", True, sum(sizes[1:4])),
        Piece("", False, sum(sizes[4:]) - 1),
    ]


def test_a_long_record_is_cut_into_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_limit(monkeypatch, "PIECE_BYTES", 10)
    rows = '{"body": "one two three"}\n{"body": "four"}\n'
    pieces = pieces_of(write(tmp_path / "rows.jsonl", rows), TextOptions(field="body"))
    assert pieces == [Piece("one two", True, 26), Piece(" three", False, 0), Piece("four", True, 17)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", oops}', r"rows\.jsonl:3: not JSON \(column 15: Expecting property name"),
        ('{"text": "a"', r"rows\.jsonl:3: not JSON \(column 13: "),
        ('{"text": "a"} {}', r"rows\.jsonl:3: not JSON \(column 15: Extra data"),
        ('"text"', r"rows\.jsonl:3: record is a string, want an object with the field 'text'"),
        ('{"a": 1, "b\\u001b": 2}', r"rows\.jsonl:3: no field 'text'; it has 'a', 'b\\x1b'; name it, --field NAME"),
        ("{}", r"rows\.jsonl:3: no field 'text'; it has no fields; name it, --field NAME"),
        ('{"text": 1.5}', r"rows\.jsonl:3: field 'text' must be text, got a number, 1\.5"),
        ('{"text": null}', r"rows\.jsonl:3: field 'text' must be text, got null"),
        ('{"text": false}', r"rows\.jsonl:3: field 'text' must be text, got a boolean"),
        ('{"text": ["a"]}', r"rows\.jsonl:3: field 'text' must be text, got a list"),
        ('{"text": {"a": 1}}', r"rows\.jsonl:3: field 'text' must be text, got an object"),
        ('{"text": "ab\\ud800"}', r"rows\.jsonl:3: field 'text' has a lone surrogate \\ud800 at character 3; "),
        ('{"text": "a", "x": ' + "[" * 200_000, r"rows\.jsonl:3: JSON is nested too deeply"),
        ('{"text": "a", "x": ' + "9" * 5000 + "}", r"rows\.jsonl:3: a number has more than 4300 digits"),
    ],
)
def test_a_bad_record_is_placed(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "rows.jsonl", f'{{"text": "\\ud83d\\ude00"}}\n\n{line}\n')
    with pytest.raises(DataError, match=message):
        pieces_of(path)


@pytest.mark.parametrize("end", ["", "\n", '"}\n{"text": "b"}\n'])
def test_a_line_beyond_the_limit_is_refused_without_holding_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    set_limit(monkeypatch, "PIECE_BYTES", 1 << 14)
    set_limit(monkeypatch, "MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "rows.jsonl", '{"text": "a"}\n{"text": "' + "a" * (16 << 20) + end)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"rows\.jsonl:2: line is longer than 1 MiB"):
        pieces_of(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 << 20


# ------------------------------------------------------------------------------------------------ sizes and memory


def test_digest_and_size_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "some text")
    assert file_sha256(path) == hashlib.sha256(b"some text").hexdigest()
    assert decompressed_bytes(find_one(path)) == 9
    with pytest.raises(ConfigError, match="no such file"):
        file_sha256(tmp_path / "missing.txt")


MEASURE = """
    import tracemalloc
    tracemalloc.start()
    (source,) = find_sources(["-"], TextOptions())
    sizes = [piece.raw_bytes for piece in read_pieces(source, TextOptions())]
    print(source.kind, sum(sizes), len(sizes), tracemalloc.get_traced_memory()[1] >> 20)
"""


@pytest.mark.parametrize("compressed", [False, True])
def test_one_line_of_200_megabytes_takes_a_few_megabytes_of_memory(compressed: bool) -> None:
    read_end, write_end = os.pipe()

    def produce() -> None:
        compress = zlib.compressobj(1, wbits=31)
        block = b"a" * (1 << 20)
        with open(write_end, "wb") as stream:
            for _ in range(200):
                stream.write(compress.compress(block) if compressed else block)
            stream.write(compress.flush() if compressed else b"")

    writer = threading.Thread(target=produce)
    writer.start()
    with open(read_end, "rb") as stdin:
        done = in_subprocess(MEASURE, stdin.fileno())
    writer.join()
    kind, raw_bytes, pieces, peak_mib = done.stdout.decode().split()
    assert (kind, int(raw_bytes), int(pieces)) == ("text", 200 << 20, 200)
    assert int(peak_mib) < 16


def test_a_long_jsonl_file_takes_a_few_megabytes_of_memory() -> None:
    rows = (json.dumps({"text": "x" * 30_000}) + "\n").encode() * 1000
    kind, raw_bytes, pieces, peak_mib = in_subprocess(MEASURE, rows).stdout.decode().split()
    assert (kind, int(raw_bytes), int(pieces)) == ("jsonl", len(rows), 1000)
    assert int(peak_mib) < 16


# --------------------------------------------------------------------------------------------------------- properties

ANY_TEXT = st.text(
    st.sampled_from("ab  .'\n\r\t1日é🙂\ufeff\x1c\u3000½s")
    | st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)


def read_bytes(content: bytes, name: str, options: TextOptions, piece_bytes: int) -> list[Piece]:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        set_limit(patch, "PIECE_BYTES", piece_bytes)
        return pieces_of(write(Path(directory, name), content), options)


@FEW
@given(ANY_TEXT, st.integers(1, 40), st.sampled_from(["utf-8", "utf-16", "utf-32-le"]), st.booleans())
def test_pieces_lose_nothing(text: str, piece_bytes: int, encoding: str, compressed: bool) -> None:
    content = text.encode(encoding)
    stored = gzip.compress(content) if compressed else content
    pieces = read_bytes(stored, "a.txt", TextOptions(encoding=encoding), piece_bytes)
    expected = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    assert [piece.text for piece in pieces if piece.text] == [
        piece for piece in split_text(expected, piece_bytes) if piece
    ]
    assert "".join(piece.text for piece in pieces) == expected
    assert sum(piece.raw_bytes for piece in pieces) == len(content)
    assert all(0 < len(piece.text) <= piece_bytes and piece.raw_bytes >= 0 for piece in pieces[:-1])
    assert [piece.starts_document for piece in pieces] == [
        index == 0 and expected != "" for index in range(len(pieces))
    ]


@FEW
@given(st.lists(st.text() | st.just("")), st.integers(1, 40), st.booleans())
def test_records_lose_nothing(texts: list[str], piece_bytes: int, ascii_only: bool) -> None:
    content = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in texts).encode()
    pieces = read_bytes(content, "a.jsonl", UTF8, piece_bytes)
    assert "".join(piece.text for piece in pieces) == "".join(texts)
    assert sum(piece.starts_document for piece in pieces) == sum(map(bool, texts))
    assert sum(piece.raw_bytes for piece in pieces) == len(content)


CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SAMPLE = "It's the cat's 12345 hats, and they'll   sit.\n\n  on a mat ... é日本 I'VE (said) so\t!\r\n" * 4


def trained_tokenizer(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2")
    split = [pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated")] if pattern == "cl100k" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


TOKENIZERS = {pattern: trained_tokenizer(pattern) for pattern in ("gpt2", "cl100k")}
WORDS = st.lists(
    st.sampled_from([*"ab'.1é日½²ªsʰ\u0301\n\t\r  ", " a", " the", "  ", "'s ", " 12", "\x1c", "\u3000", "\x85"])
)


@pytest.mark.parametrize("pattern", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(WORDS.map("".join) | ANY_TEXT, st.integers(2, 30))
def test_pieces_have_the_ids_of_the_whole(pattern: str, text: str, limit: int) -> None:
    pieces = list(split_text(text, limit))
    # A hard cut may change ids at its border; what is glued together over the hard cuts must have the same ids.
    between_words = [""]
    for piece in pieces:
        if re.match(r" [^\W\d_]", piece) and between_words[-1][-1:].strip():
            between_words.append(piece)
        else:
            between_words[-1] += piece
    encode = TOKENIZERS[pattern].encode
    assert [id for piece in between_words for id in encode(piece).ids] == encode(text).ids


@pytest.mark.parametrize("pattern", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(WORDS.map("".join) | ANY_TEXT, st.integers(2, 30))
def test_pieces_that_end_between_words_have_the_ids_of_the_whole(pattern: str, text: str, limit: int) -> None:
    pieces = list(split_text(text, limit, anywhere=False))
    assert "".join(pieces) == text
    encode = TOKENIZERS[pattern].encode
    assert [id for piece in pieces for id in encode(piece).ids] == encode(text).ids


@FEW
@given(WORDS.map("".join) | ANY_TEXT, st.integers(1, 30))
def test_a_cut_goes_before_the_last_single_space_that_begins_a_word(text: str, limit: int) -> None:
    *cut, last = split_text(text, limit)
    start = 0
    for piece in cut:
        places = [i for i in range(start + 1, start + limit) if re.match(r"\S [^\W\d_]", text[i - 1 : i + 2])]
        places = [i for i in places if text[i + 1].isalpha()]
        assert start + len(piece) == (places or [start + limit])[-1]
        start += len(piece)
    assert len(last) <= limit


@pytest.mark.parametrize("pattern", TOKENIZERS)
def test_prose_is_never_cut_hard(pattern: str) -> None:
    pieces = list(split_text(SAMPLE, 40))
    encode = TOKENIZERS[pattern].encode
    assert len(pieces) > 5
    assert all(re.match(r" [^\W\d_]", piece) for piece in pieces[1:])
    assert [id for piece in pieces for id in encode(piece).ids] == encode(SAMPLE).ids


def test_a_cut_is_found_far_back_and_a_text_without_one_is_cut_at_the_limit() -> None:
    far_back = "one two" + "日" * 99_996 + " 1 2 3"
    assert [len(piece) for piece in split_text(far_back, 100_000)] == [3, 100_000, 6]
    assert list(split_text("aa ½b cc", 5)) == ["aa ½b", " cc"]  # a fraction is a numeral, no letter
    assert [len(piece) for piece in split_text("a" * 25, 10)] == [10, 10, 5]
    assert [len(piece) for piece in split_text("1 " * 20, 10)] == [10, 10, 10, 10]
    assert list(split_text("", 10)) == [""]
    assert list(split_text("a" * 25 + " a" * 10, 10, anywhere=False)) == ["a" * 25 + " a" * 2, " a" * 4, " a" * 4]


def read_or_refuse(content: bytes, name: str, options: TextOptions, piece_bytes: int) -> None:
    """Whatever comes out, text or message, can be written."""
    try:
        result = "".join(piece.text for piece in read_bytes(content, name, options, piece_bytes))
    except GptcliError as error:
        result = str(error)
    result.encode()


ENCODINGS = st.sampled_from(["utf-8", "utf-16", "utf-32", "latin-1", "ascii", "gb18030", "shift_jis", "iso2022_jp"])
OPTIONS = st.builds(TextOptions, encoding=ENCODINGS, errors=st.sampled_from(["strict", "replace", "ignore"]))
NAMES = st.sampled_from(["a.txt", "a.jsonl", "a.gz"])


@FEW
@given(st.binary(), NAMES, OPTIONS, st.integers(1, 64))
@example(b"\0\0\0\0\0\xdc", "a.txt", TextOptions(encoding="utf-16"), 6)
def test_random_bytes_raise_nothing_but_gptcli_errors(
    content: bytes, name: str, options: TextOptions, piece_bytes: int
) -> None:
    read_or_refuse(content, name, options, piece_bytes)


ROWS = b'{"text": "one two \\ud83d\\ude00", "x": [1, {"a": null}]}\n\n{"text": "three\\n"}\n' * 2


@FEW
@given(st.data(), st.sampled_from([ROWS, gzip.compress(ROWS), gzip.compress(ROWS) * 2]), NAMES, OPTIONS)
def test_damaged_files_raise_nothing_but_gptcli_errors(
    data: st.DataObject, content: bytes, name: str, options: TextOptions
) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), name, options, 16)


@FEW
@given(st.text(max_size=20))
def test_any_name_of_nothing_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(GptcliError) as caught:
        find_sources([f"no-such-directory/{name}"], UTF8)
    assert escape(str(caught.value), limit=1000) == str(caught.value)


def test_shown_escapes_controls_and_cuts_between_escapes() -> None:
    assert escape("a\tb\x7f\x85\u2028\u202e\u2066\ud800日é\\") == r"a\tb\x7f\x85\u2028\u202e\u2066\ud800日é" + "\\"
    assert escape("x" * 120) == "x" * 120
    assert escape("x" * 121) == "x" * 119 + "…"
    assert escape("ab\n\n", limit=5) == "ab\\n…"
    assert escape("") == ""
