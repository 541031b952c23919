"""Inputs -> sources: files, directories, patterns and streams, and what is refused."""

import codecs
import gzip
import json
import os
import threading
from pathlib import Path

import pytest
from texts import UTF8, documents_of, find_one, in_subprocess, pieces_of, write

from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.data.text import (
    TextOptions,
    decompressed_bytes,
    find_sources,
    read_pieces,
)

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
