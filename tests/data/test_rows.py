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


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        (
            "pandas.csv",
            ",text,label\n0,good,pos\n1,bad,neg\n",
            [{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}],
        ),
        ("semi.csv", "\ufefftext;label\ngood, or so;pos\n", [{"text": "good, or so", "label": "pos"}]),
        ("excel.csv", "sep=;\ntext;label\na;b\n", [{"text": "a", "label": "b"}]),
        ("space.csv", 'text, label\n"a, b", c\n', [{"text": "a, b", "label": "c"}]),
        ("mac.csv", "text,label\ra,b\rc,d\r", [{"text": "a", "label": "b"}, {"text": "c", "label": "d"}]),
        ("tab.csv", "text\tlabel\na\tb\n", [{"text": "a", "label": "b"}]),
        ("comma.tsv", 'text,label\n"a,b",c\n', [{"text": "a,b", "label": "c"}]),
        ("array.json", '[{"a": 1},\n {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ("array.jsonl", '[{"a": 1}]', [{"a": 1}]),
        ("lines.json", '{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
        ("one", '{"a": 1}', [{"a": 1}]),
    ],
)  # fmt: skip
def test_rows_are_read_as_people_and_programs_write_them(
    tmp_path: Path, name: str, content: str, wanted: list[dict[str, object]]
) -> None:
    (tmp_path / name).write_text(content)
    assert [row.fields for row in rows(tmp_path / name)] == wanted


def test_an_element_of_an_array_has_its_line_and_number(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n {"a": 2}, 3]')
    with pytest.raises(DataError, match=r"a\.json:2: item 3: record is a number, want an object"):
        rows(path)
    path.write_text('[{"a": 1}, {"a" 2}]')
    with pytest.raises(DataError, match=r"a\.json:1: item 2: not JSON"):
        rows(path)


def test_several_bad_rows_are_one_refusal_with_their_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\nno\n[]\n{"b": 1}\n')
    with pytest.raises(DataError) as error:
        load_rows([str(path)], lambda row: row.text("text"), on_bad_line="error")
    assert error.value.problems[-1] == f"{path}: 3 of 4 rows cannot be read; mend or drop such rows"


def test_a_template_leaves_out_paragraphs_whose_fields_are_empty() -> None:
    template = "Below is a task.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    full = Row("f:1", {"instruction": "Add.", "input": "1 {input}"}).filled(template)
    assert full == "Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1 {input}\n\n### Response:\n"
    for empty in ("", " \n", None):
        found = Row("f:1", {"instruction": "Add.", "input": empty}).filled(template)
        assert found == "Below is a task.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    with pytest.raises(DataError, match="f:1: no field 'input'; it has 'instruction'"):
        Row("f:1", {"instruction": "Add."}).filled(template)
    assert Row("f:1", {"a": "b"}).filled("{a}\\n") == "b\n"
