"""Sources -> pieces: text, gzip, JSONL, sizes and memory."""

import codecs
import gzip
import hashlib
import json
import os
import re
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from texts import UTF8, documents_of, find_one, in_subprocess, pieces_of, set_limit, write

from gptcli.base.errors import ConfigError, DataError
from gptcli.data.text import (
    Piece,
    TextOptions,
    decompressed_bytes,
    file_sha256,
    find_sources,
    read_pieces,
)

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
