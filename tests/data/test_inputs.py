"""What a file holds is told by its content: kinds, compressions, directories, documents, bad rows, encodings."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import DataError
from gptcli.base.report import Collected
from gptcli.data.encodings import candidates
from gptcli.data.jsonl import array_elements
from gptcli.data.split import documents
from gptcli.data.text import Findings, TextOptions, decompressed_bytes, find_sources, read_pieces

TEXTS = [f"Record {number} says “naïve” \n and 日本." for number in range(7)]
ROWS = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS))
ARRAY = json.dumps([{"text": text} for text in TEXTS], indent=1, ensure_ascii=False)


def read(path: Path, options: TextOptions = TextOptions(), found: Findings | None = None) -> list[str]:  # noqa: B008
    """The documents of a path, once the bytes of the pieces add up."""
    texts: list[str] = []
    for source in find_sources([str(path)], options):
        pieces = list(read_pieces(source, options, found))
        assert sum(piece.raw_bytes for piece in pieces) == decompressed_bytes(source, options)
        for piece in pieces:
            if piece.starts_document:
                texts.append(piece.text)
            elif piece.text:
                texts[-1] += piece.text
    return texts


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.jsonlines", "wiki_00", "a.jsonl", "a.ndjson"])
@pytest.mark.parametrize("content", [ROWS, ARRAY, json.dumps(TEXTS), "\ufeff\n " + ROWS, json.dumps(TEXTS, indent=2)])
def test_records_are_documents_whatever_the_name(tmp_path: Path, name: str, content: str) -> None:
    assert read(write(tmp_path / name, content)) == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        "[1] A note.\n[2] Another.\n",
        '[Event "Rated game"]\n1. e4 e5\n',
        '["Well," he said,\n and went.',
        "{not json}\n",
        '{"a": 1}\nand text\n',
        '{"name": "package", "version": 1}',
        "[[Link]] and {{template}}",
        '{\n "a": 1\n}\n',
    ],
)
def test_text_that_begins_like_json_is_text(tmp_path: Path, content: str) -> None:
    assert read(write(tmp_path / "a.txt", content)) == [content]


def test_json_that_is_read_as_text_is_told(tmp_path: Path) -> None:
    told = Collected()
    find_sources([str(write(tmp_path / "a.txt", '{\n "a": 1\n}\n'))], TextOptions(), told)
    assert "a.txt: read as plain text, markup included" in told.messages[0]


def zstd(content: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").compress(content))


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress, zstd])
def test_compressed_files_are_known_by_their_content(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    assert read(write(tmp_path / "a.bin", compress(ROWS.encode()))) == TEXTS
    two = compress(b"one ") + compress(b"") + compress(b"two")
    assert read(write(tmp_path / "b.txt", two)) == ["one two"]
    with pytest.raises(DataError, match=r"c\.txt: ends early after \d+ bytes"):
        read(write(tmp_path / "c.txt", compress(ROWS.encode() * 99)[:-9]))


def test_parquet_is_read_by_its_column(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": [*TEXTS, None], "n": list(range(8))}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", TextOptions(on_bad_row="skip")) == TEXTS
    with pytest.raises(DataError, match="row 8: column 'text' must be text, got null"):
        read(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'body'; it has 'text', 'n'; name it, --field NAME"):
        read(tmp_path / "a.parquet", TextOptions(field="body"))


def test_a_directory_tells_what_it_leaves_out_and_is_no_place_of_runs(tmp_path: Path) -> None:
    for name in ("README.md", "a.train", "b.train", "sub/wiki_00", "rows.json", ".hidden"):
        write(tmp_path / name, ROWS if name == "rows.json" else "text")
    write(tmp_path / "config.json", '{"a": 1}')
    write(tmp_path / "runs/demo/run.yaml", "x")
    write(tmp_path / "runs/demo/metrics.jsonl", '{"loss": 1}\n')
    write(tmp_path / "prepared/index.json", '{"format": "gptcli-shards"}')
    told = Collected()
    found = find_sources([str(tmp_path)], TextOptions(), told)
    assert [source.path.name for source in found if source.path] == ["README.md", "rows.json"]
    (line,) = told.messages
    assert line.startswith(f"{tmp_path}: read 2 of 6 files; left out 2 .train, ")
    for word in ("1 .json", "1 without a suffix", "**/*.train", "and 1 other, made by gptcli"):
        assert word in line


@pytest.mark.parametrize(
    ("separator", "content", "wanted"),
    [
        ("<|endoftext|>", "one\n<|endoftext|>\ntwo<|endoftext|>three\n<|endoftext|>\n\n<|endoftext|>\n",
         ["one\n", "two", "three\n"]),
        ("blank", "a\nb\n\nc\n \n\n\nd\n", ["a\nb", "c", "d\n"]),
        ("line", "a\r\nb\n\nc", ["a", "b", "c"]),
        ("\\n---\\n", "a\n---\nb", ["a", "b"]),
    ],
)  # fmt: skip
def test_a_separator_divides_a_text_into_documents(
    tmp_path: Path, separator: str, content: str, wanted: list[str]
) -> None:
    assert read(write(tmp_path / "a.txt", content), TextOptions(separator=separator)) == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab \n|", max_size=9)), st.integers(1, 9))
def test_documents_are_the_same_in_blocks_of_any_size(parts: list[str], size: int) -> None:
    text = "<|x|>".join(parts)
    whole = [found for found in documents([(text, len(text))], "<|x|>") if found[0]]
    blocks = [(text[at : at + size], len(text[at : at + size])) for at in range(0, len(text), size)]
    cut = [found for found in documents(blocks, "<|x|>") if found[0]]
    assert [found[:2] for found in cut] == [found[:2] for found in whole]


def test_a_mark_that_divides_nothing_is_told(tmp_path: Path) -> None:
    found, told = Findings(), Collected()
    read(write(tmp_path / "a.txt", "x" * 9000 + "\n<|endoftext|>\ny"), found=found)
    found.tell(told, TextOptions(flags=False))
    assert "'<|endoftext|>' is read as 13 characters" in told.messages[0]
    assert "-s data.separator='<|endoftext|>'" in told.messages[0]


def test_bad_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS + 'no\n{"text": null}\n[1]\n{"a": 1}\n')
    with pytest.raises(DataError) as error:
        read(path)
    assert len(error.value.problems) == 4
    assert "4 of 11 rows cannot be read; mend or drop such rows, or --on-bad-row skip" in error.value.problems[-1]
    found, told = Findings(), Collected()
    assert read(path, TextOptions(on_bad_row="skip"), found) == TEXTS
    found.tell(told, TextOptions())
    assert told.messages[0].startswith("4 of 11 rows left out, which cannot be read; the first: ")
    with pytest.raises(DataError, match="none of 2 rows can be read"):
        read(write(tmp_path / "b.jsonl", "no\nno\n"), TextOptions(on_bad_row="skip"))


def test_lone_surrogates_follow_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a\\ud83d"}\n')
    assert read(path, TextOptions(errors="replace")) == ["a\ufffd"]
    assert read(path, TextOptions(errors="ignore")) == ["a"]
    with pytest.raises(DataError, match=r"lone surrogate .* pass --errors replace"):
        read(path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text()) | st.text(), max_size=5), st.integers(1, 9))
def test_an_array_has_its_elements_in_parts_of_any_size(values: list[object], size: int) -> None:
    text = json.dumps(values, indent=1) + "\n"
    found = list(array_elements([text[at : at + size] for at in range(0, len(text), size)], "a", 1 << 20))
    assert [value for _, _, value in found if value is not None] == values
    assert "".join(part for _, part, _ in found) == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "He said “no” and left — it’s the café’s naïve fault…"),
        ("cp1251", "Сегодня хорошая погода, и мы идём гулять в парк."),
        ("koi8-r", "Было холодное утро, когда старик вышел из дома."),
        ("gb18030", "今天天气很好，我们一起去公园散步吧。"),
        ("big5", "今天天氣很好，我們一起去公園散步吧。這是一個很長的故事。"),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。"),
        ("euc_jp", "今日は天気がいいので散歩に行きましょう。"),
        ("cp949", "오늘은 날씨가 매우 좋습니다. 우리는 함께 공원에 갔다."),
        ("cp1253", "Καλημέρα σας, τι κάνετε σήμερα; Ο καιρός είναι πολύ καλός."),
        ("cp874", "วันนี้อากาศดีมาก เราไปเดินเล่นที่สวนสาธารณะกันเถอะ"),
        ("cp1250", "Příliš žluťoučký kůň úpěl ďábelské ódy."),
    ],
)
def test_the_likeliest_encoding_is_named_first(encoding: str, text: str) -> None:
    assert candidates(f"{text}\n".encode(encoding))[0] == encoding


def test_damage_in_utf8_is_no_other_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "naïve café à la carte\n".encode() * 3 + b"\xff")
    with pytest.raises(DataError, match="the text around it is UTF-8, so mend the byte or pass --errors replace"):
        read(path)
