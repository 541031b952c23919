"""Rows from JSONL, CSV and TSV: each with its fields and its place."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.base.errors import DataError
from gptcli.data.rows import Row, load_rows

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\ufeff"), max_size=8)


def rows(path: Path) -> list[Row]:
    return load_rows([str(path)], lambda row: row, on_bad_line="error").items


@given(st.lists(st.tuples(CELLS.filter(bool), CELLS), min_size=1, max_size=6))
def test_csv_gives_what_was_written_with_the_line_it_begins_on(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "label"])
    places = []
    for record in cells:
        places.append(written.getvalue().count("\n") + 1)
        writer.writerow(record)
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_bytes(written.getvalue().encode())
    found = rows(path)
    assert [(row.fields["text"], row.fields["label"]) for row in found] == cells
    assert [row.place for row in found] == [f"{path}:{line}" for line in places]


def test_a_quote_in_tsv_is_a_character_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"a" b\tx\n"\ty\n')
    assert [row.fields for row in rows(path)] == [{"text": '"a" b', "label": "x"}, {"text": '"', "label": "y"}]


def test_jsonl_may_be_compressed_and_have_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n\n{"text": "b"}'))
    assert rows(path) == [Row(f"{path}:1", {"text": "a"}), Row(f"{path}:3", {"text": "b"})]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", '{"text": "a"}\n{"text": \n', ":2: not JSON (column 11: Expecting value)"),
        ("r.jsonl", "[1]\n", ":1: record is a list, want an object"),
        ("r.csv", "text,label\na,b\na\n", ":3: 1 fields, want the 2 of the header"),
        ("r.csv", 'text,label\n"a,b\n', ":2: not a record (unexpected end of data)"),
        ("r.csv", "text,text\n", ":1: the header must name every field once, got 'text', 'text'"),
        ("r.csv", "text,label\n", ": no rows"),
        ("r.txt", "a\n", ": rows are read from JSON lines, JSON arrays, Parquet, CSV and TSV"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as error:
        rows(path)
    assert f"{path}{said}" in str(error.value)


def test_bad_lines_are_skipped_and_kept_as_messages_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a"}\nno\n{"text": 1}\n{"other": ""}\n{"text": "\\ud800"}\n{"text": "b"}\n')
    found = load_rows([str(path)], lambda row: row.text("text"), on_bad_line="skip")
    assert found.items == ["a", "b"]
    assert [line.partition(": ")[0] for line in found.bad_lines] == [f"{path}:{line}" for line in (2, 3, 4, 5)]
    with pytest.raises(DataError, match=r"no rows; .*r\.jsonl:1: no field 'x'"):
        load_rows([str(path)], lambda row: row.text("x"), on_bad_line="skip")


def test_rows_of_a_text_field_say_what_they_have_instead() -> None:
    row = Row("f:1", json.loads('{"text": {"a": 1}, "b": "c"}'))
    with pytest.raises(DataError, match=r"f:1: field 'text' must be text, got an object, \{\"a\": 1\}"):
        row.text("text")
    with pytest.raises(DataError, match="f:1: no field 'label'; it has 'text', 'b'"):
        row.text("label")
