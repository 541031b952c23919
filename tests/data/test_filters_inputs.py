"""Corpus filters: no field of a record is lost, whatever its file; a killed filter run again gives the same bytes."""

import datetime
import itertools
import json
from pathlib import Path

import pytest
from conftest import RunCli, english
from faults import Fault, Trial, read_log

ROWS = [
    {"id": 7, "text": "Write to anna@mail.example.org soon.", "tags": ["a", "b"], "meta": {"year": 1999}},
    {"id": "x", "text": "The miller sold seven stones.", "tags": [], "meta": {"year": None}},
]
WANTED = [{**ROWS[0], "text": "Write to <EMAIL> soon."}, ROWS[1]]


def filtered(path: Path, run_cli: RunCli) -> list[dict[str, object]]:
    done = run_cli("corpus", "filter", path, "--pii", "mask", "-q")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.text.splitlines()]


def test_records_of_a_json_array_keep_their_fields(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=1))
    assert filtered(tmp_path / "rows.json", run_cli) == WANTED
    (tmp_path / "texts.json").write_text(json.dumps([row["text"] for row in ROWS]))
    assert filtered(tmp_path / "texts.json", run_cli) == [{"text": row["text"]} for row in WANTED]


def test_rows_of_parquet_keep_their_columns(tmp_path: Path, run_cli: RunCli) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    when = datetime.datetime(2020, 5, 4, 3, 2, 1)
    given = [(ROWS[0], 0.5), (ROWS[1], float("nan"))]
    rows = [{**row, "id": str(row["id"]), "when": when, "score": score} for row, score in given]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = filtered(tmp_path / "rows.parquet", run_cli)
    assert [row["meta"] for row in found] == [row["meta"] for row in WANTED]
    assert [(row["text"], row["tags"], row["when"]) for row in found] == [
        (row["text"], row["tags"], "2020-05-04T03:02:01") for row in WANTED
    ]
    assert [row["score"] for row in found] == [0.5, "nan"]


FILTER = "filter in.jsonl --pii mask --sample 0.8 --dropped told.jsonl"
DECONTAMINATE = "decontaminate in.jsonl --against eval.jsonl --action drop --hits told.jsonl"


@pytest.mark.parametrize("line", [FILTER, DECONTAMINATE])
def test_a_killed_filter_run_again_gives_the_same_bytes(line: str, tmp_path: Path) -> None:
    lines = english(60, 3).splitlines()
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": n, "text": f"{text} Call +49 30 901820."}) + "\n" for n, text in enumerate(lines))
    )
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": lines[5]}) + "\n")
    command = ["corpus", *line.split(), "-o", "out.jsonl", "-q"]
    log = tmp_path / "log"
    first = Trial(command, tmp_path, fault=Fault(log=str(log))).end()
    assert first.code == 0, first.err
    outputs = [tmp_path / "out.jsonl", tmp_path / "told.jsonl"]
    want = [path.read_bytes() for path in outputs]
    assert all(want)
    points = range(0, len(read_log(log)), max(1, len(read_log(log)) // 4))
    killed = 0
    for number, how in zip(points, itertools.cycle(["before", "middle", "after"]), strict=False):
        for path in outputs:
            path.unlink(missing_ok=True)
        killed += Trial(command, tmp_path, fault=Fault(number, how)).end().code == 137
        assert all(
            not path.exists() or path.read_bytes() == content for path, content in zip(outputs, want, strict=True)
        )
        again = Trial([*command, "--force"], tmp_path).end()
        assert again.code == 0, again.err
        assert [path.read_bytes() for path in outputs] == want
    assert killed > 2
