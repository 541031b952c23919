"""From text to a model that writes, as users type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import RunCli, english, tiny_run_file


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text(english(300, seed=3))
    return tmp_path


def test_a_pipe_leads_from_text_to_text(work: Path, run_bash: RunCli) -> None:
    (work / "run.yaml").write_text(tiny_run_file(Path("corpus.txt"), Path("run"), tokenizer=Path("t.json")))
    result = run_bash(
        "set -e -o pipefail\n"
        "cat corpus.txt | gptcli train-tokenizer - -o t.json --vocab-size 300 --json > tokenizer-facts.json\n"
        "gptcli pretrain run.yaml -s train.steps=4 --json > facts.json\n"
        "set +o pipefail\n"
        'echo "Once" | gptcli generate run --max-tokens 30 | head -c 100',
        cwd=work,
    )
    assert result.code == 0, result.err
    assert 0 < len(result.out) <= 100
    assert json.loads((work / "tokenizer-facts.json").read_text())["vocab_size"] == 300
    facts = json.loads((work / "facts.json").read_text())
    assert (facts["run_dir"], facts["step"], facts["finished"]) == ("run", 4, True)
    assert facts["validation"]["bits_per_byte"] > 0
    assert "from scratch" in result.err
    metrics = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics if record["kind"] == "validation"] == [3, 4]


def test_prepared_text_is_trained_on_as_raw_text_is(work: Path, run_bash: RunCli) -> None:
    (work / "prepared.yaml").write_text(tiny_run_file(Path("data"), Path("a"), steps=2))
    (work / "raw.yaml").write_text(tiny_run_file(Path("corpus.txt"), Path("b"), tokenizer=Path("t.json"), steps=2))
    result = run_bash(
        "set -e\n"
        "gptcli train-tokenizer corpus.txt -o t.json --vocab-size 300 -q\n"
        "gptcli prepare corpus.txt -t t.json -o data --json -q > index.json\n"
        "gptcli pretrain prepared.yaml -q\n"
        "gptcli pretrain raw.yaml -q\n"
        "cmp a/latest/model.safetensors b/latest/model.safetensors\n",
        cwd=work,
        env={"XDG_CACHE_HOME": str(work / "cache")},
    )
    assert result.code == 0, result.err
    index = json.loads((work / "index.json").read_text())
    splits = index["splits"]
    assert splits["train"]["bytes"] + splits["validation"]["bytes"] == (work / "corpus.txt").stat().st_size


def test_a_run_prepares_its_text_once_and_again_when_it_has_changed(work: Path, run_cli: RunCli) -> None:
    cache = work / "cache"

    def pretrain(name: str) -> str:
        (work / "run.yaml").write_text(tiny_run_file(work / "corpus.txt", work / name, steps=1))
        result = run_cli("pretrain", work / "run.yaml", env={"XDG_CACHE_HOME": str(cache)})
        assert result.code == 0, result.err
        return result.err

    def made() -> dict[str, int]:
        files = [path for path in cache.rglob("*.*") if path.is_file() and ".partial" not in str(path)]
        return {str(path.relative_to(cache)): path.stat().st_mtime_ns for path in files}

    assert "trained a tokenizer: 300 tokens" in pretrain("first")
    first = made()
    assert sum(name.endswith("index.json") for name in first) == 1
    assert "trained a tokenizer" not in pretrain("second")
    assert made() == first
    (work / "corpus.txt").write_text(english(300, seed=4))
    assert "trained a tokenizer" in pretrain("third")
    third = made()
    assert sum(name.endswith("index.json") for name in third) == 2
    assert first.items() <= third.items()
