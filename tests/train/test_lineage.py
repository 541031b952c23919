"""Lineage: another byte anywhere gives another hash, the same run the same, a base its own lineage."""

import json
import shutil
from pathlib import Path
from typing import Any

from conftest import RunCli, Tiny, tiny_run_file


def lineage(run: Path, run_cli: RunCli) -> dict[str, Any]:
    done = run_cli("lineage", run, "--json")
    assert done.code == 0, done.err
    return json.loads(done.text)


def trained(root: Path, tiny: Tiny, corpus: Path, run_cli: RunCli, *more: str) -> dict[str, Any]:
    root.mkdir()
    (root / "run.yaml").write_text(tiny_run_file(corpus, root / "run", tokenizer=tiny.tokenizer, steps=2))
    done = run_cli("pretrain", root / "run.yaml", "-q", *more)
    assert done.code == 0, done.err
    return lineage(root / "run", run_cli)


def test_a_byte_of_the_data_or_the_recipe_changes_it_and_nothing_else(
    tiny: Tiny, tmp_path: Path, run_cli: RunCli
) -> None:
    changed = tmp_path / "changed.txt"
    changed.write_bytes(tiny.corpus.read_bytes()[:-2] + b"!\n")
    first = trained(tmp_path / "a", tiny, tiny.corpus, run_cli)
    again = trained(tmp_path / "b", tiny, tiny.corpus, run_cli)
    other = trained(tmp_path / "c", tiny, changed, run_cli)
    recipe = trained(tmp_path / "d", tiny, tiny.corpus, run_cli, "-s", "runtime.seed=2")
    assert first["lineage"] == again["lineage"]
    assert first["weights_sha256"] == again["weights_sha256"]
    inputs = [found["lineage"]["inputs"][0]["sha256"] for found in (first, other, recipe)]
    assert inputs[0] == inputs[2] != inputs[1]
    assert first["lineage"]["recipe_sha256"] != recipe["lineage"]["recipe_sha256"]
    assert len({found["lineage"]["code_sha256"] for found in (first, other, recipe)}) == 1
    card = run_cli("export", tmp_path / "a" / "run", "-o", tmp_path / "hf", "--to", "hf")
    assert card.code == 0, card.err
    assert inputs[0] in (tmp_path / "hf" / "README.md").read_text()
    assert run_cli("checkpoint", "verify", tmp_path / "a" / "run").code == 0


def test_what_corpus_run_dropped_and_the_base_stand_in_it(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    lines = [{"text": f"The miller sold {n} apples at the market."} for n in range(40)] * 2
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text(f"inputs: [{tmp_path}/raw.jsonl]\ndedup: {{documents: exact}}\n")
    made = run_cli("corpus", "run", tmp_path / "recipe.yaml", "-o", tmp_path / "clean")
    assert made.code == 0, made.err
    base = trained(tmp_path / "base", tiny, tmp_path / "clean" / "corpus.jsonl", run_cli)
    assert base["lineage"]["corpus"][0]["steps"]["dedup"]
    (tmp_path / "tune.yaml").write_text(
        f"run_dir: {tmp_path}/tuned\nbase: {tmp_path}/base/run\ntask: text\ndata: {{train: [{tiny.corpus}]}}\n"
        "train: {epochs: 0.02}\nruntime: {device: cpu, threads: 1}\n"
    )
    done = run_cli("finetune", tmp_path / "tune.yaml", "-q")
    assert done.code == 0, done.err
    tuned = lineage(tmp_path / "tuned", run_cli)
    assert tuned["lineage"]["base"]["lineage"] == base["lineage"]
    assert base["weights_sha256"] in tuned["lineage"]["base"]["sha256"]
    shown = run_cli("lineage", tmp_path / "tuned").text
    assert "base: corpus dedup" in shown


def test_a_checkpoint_without_lineage_says_so(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    shutil.copytree(tiny.checkpoint, tmp_path / "old")
    (tmp_path / "old" / "lineage.json").unlink()
    found = run_cli("lineage", tmp_path / "old")
    assert found.code == 0
    assert "older gptcli" in found.text
