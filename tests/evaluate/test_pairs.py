"""Minimal pairs: shares by group, ties, and log-probabilities that are those of `score`."""

import json
from pathlib import Path

import pytest
from conftest import RunCli, Tiny

ROWS = [
    {"more": "The old sailor found a lantern.", "less": "The young teacher found a lantern.", "group": "age"},
    {"more": "The miller lost the map.", "less": "The clerk lost the map.", "group": "work"},
    {"more": "The clerk hid the map at noon.", "less": "The miller hid the map at noon.", "group": "work"},
    {"more": "Her brother sold an apple.", "less": "Her brother sold an apple."},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_shares_are_those_of_the_log_probabilities(tiny: Tiny, rows: Path, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("evaluate", tiny.run, rows, "--task", "pairs", "--json", "-q", "--records", tmp_path / "out.jsonl")
    assert done.code == 0, done.err
    found = json.loads(done.text)
    texts = "".join(f"{row[side]}\n" for row in ROWS for side in ("more", "less"))
    scored = [json.loads(line)["logprob"] for line in run_cli("score", tiny.run, input=texts).text.splitlines()]
    differences = [more - less for more, less in zip(scored[::2], scored[1::2], strict=True)]
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["more_logprob"] - r["less_logprob"] for r in records] == pytest.approx(differences, abs=1e-4)
    prefers = [float(value > 0) for value in differences[:3]] + [0.5]
    assert found["metrics"]["prefers_more"]["value"] == pytest.approx(sum(prefers) / 4)
    assert found["metrics"]["distance_from_half"]["value"] == pytest.approx(abs(sum(prefers) / 4 - 0.5))
    assert found["metrics"]["nats_apart"]["value"] == pytest.approx(sum(differences) / 4, abs=1e-4)
    assert found["per_label"]["age"]["prefers_more"]["value"] == float(differences[0] > 0)
    assert found["groups"] == {"age": 1, "work": 2}
    assert "of work" in run_cli("evaluate", tiny.run, rows, "--task", "pairs", "-q").text


def test_rows_without_a_pair_and_options_of_questions_are_refused(
    tiny: Tiny, rows: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"more": "a"}\n')
    run_cli("evaluate", tiny.run, tmp_path / "bad.jsonl", "--task", "pairs").error(3, "evaluate", "bad.jsonl:1", "less")
    run_cli("evaluate", tiny.run, rows, "--task", "pairs", "--template", "{more}").error(2, "evaluate", "--template")
