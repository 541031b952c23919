"""Audits: what a model learnt by heart is found, what it did not is not, and figures are those of other libraries."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli, Tiny, english
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from gptcli.data.leaks import leaking_tokens
from gptcli.data.shards import SplitIndex, SplitWriter, TokenArray, token_dtype, write_index
from gptcli.data.tokenizer import learn_merges
from gptcli.evaluate import novelty
from gptcli.evaluate.intervals import wilson
from gptcli.evaluate.memorisation import auc, windows

VALUES = st.lists(st.integers(0, 20), min_size=2, max_size=30)


def split(directory: Path, ids: list[int]) -> TokenArray:
    writer = SplitWriter(directory, "train", token_dtype(1000))
    writer.append(ids, text_bytes=len(ids), starts_document=True)
    writer.flush()
    write_index(directory, vocab_size=1000, splits={"train": writer.index, "validation": SplitIndex()})
    return TokenArray(directory, "train")


@settings(max_examples=20, deadline=None)
@given(VALUES, VALUES)
def test_the_area_is_that_of_scikit_learn(members: list[int], others: list[int]) -> None:
    found = auc(np.array(members, float), np.array(others, float), 0)
    labels = [1] * len(members) + [0] * len(others)
    assert found.auc == pytest.approx(roc_auc_score(labels, members + others))
    assert found.interval[0] <= found.interval[1]


def test_wilson_s_interval() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_windows_lie_within_documents(tmp_path: Path) -> None:
    ids = [7 if number % 40 == 0 else 8 + number % 900 for number in range(2000)]
    found = windows(split(tmp_path, ids), 30, 25, 7, 1)
    assert len(found) == 30
    assert all(len(window) == 25 and 7 not in window for window in found)
    assert windows(split(tmp_path, ids), 30, 45, 7, 1) == []


def test_copied_runs_are_those_that_a_search_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novelty, "BLOCK_TOKENS", 300)
    draw = np.random.default_rng(3)
    training = draw.integers(0, 1000, 2500).tolist()
    texts = [
        draw.integers(0, 1000, 100).tolist(),
        training[290:310] + draw.integers(0, 1000, 60).tolist(),  # across a block's border
        training[1000:1060],
        training[:8],
        [],
    ]
    found = {each["tokens"]: each for each in novelty.copied(texts, split(tmp_path, training))}
    whole = {size: {tuple(training[at : at + size]) for at in range(len(training))} for size in novelty.SIZES}
    for size, each in found.items():
        runs = [[tuple(text[at : at + size]) in whole[size] for at in range(len(text) - size + 1)] for text in texts]
        assert each["texts"] == sum(bool(part) for part in runs)
        assert each["texts_with_a_run"] == sum(any(part) for part in runs)
        assert each["share_of_runs"] == pytest.approx(np.mean([hit for part in runs for hit in part]))
    assert found[8]["texts_with_a_run"] == 3


def test_a_vocabulary_that_holds_long_numbers_is_told() -> None:
    text = "The code of Ann is 551661605. " * 50 + english(50)
    leaks = leaking_tokens(learn_merges([text], vocab_size=400))
    assert any("551661605" in token for token in leaks)
    assert leaking_tokens(learn_merges([english(200)], vocab_size=400)) == []


@pytest.fixture(scope="module")
def learnt_by_heart(tmp_path_factory: pytest.TempPathFactory, run_cli: RunCli) -> Path:
    """A model of one passage, read hundreds of times, and of others, each read once an epoch."""
    root = tmp_path_factory.mktemp("heart")
    made = run_cli("corpus", "canaries", "-o", root / "planted", "--each", 2, "--repeats", "64")
    assert made.code == 0, made.err
    (root / "run.yaml").write_text(
        f"run_dir: {root}/run\ndata: {{train: [{root}/planted/corpus.jsonl], validation_split: document}}\n"
        "tokenizer: {vocab_size: 400}\nmodel: {num_layers: 2, hidden_size: 64, num_heads: 2, context_length: 256}\n"
        "train: {steps: 150, batch_size: 4, eval_every_steps: 150, sample_every_steps: 0, patience: null}\n"
        "runtime: {device: cpu, dtype: float32, threads: 1}\n"
    )
    done = run_cli("pretrain", root / "run.yaml", "-q", "-s", "model.dropout=0")
    assert done.code == 0, done.err
    return root


def test_what_was_planted_comes_out_and_the_control_does_not(learnt_by_heart: Path, run_cli: RunCli) -> None:
    key = learnt_by_heart / "planted" / "key.json"
    asked = ("audit", learnt_by_heart / "run", "--canaries", key, "--samples", 4, "--prefixes", 20, "-q")
    found = run_cli(*asked, "--json", "--fail-above", "canaries=1")
    assert found.code == 0, found.err
    document = json.loads(found.text)
    groups = {(group["kind"], group["repeats"]): group for group in document["canaries"]}
    assert groups["passage", 64]["extracted"] == 2
    assert groups["passage", 0]["extracted"] == groups["code", 0]["extracted"] == 0
    assert groups["code", 64]["exposure_bits"] > 6 > groups["code", 0]["exposure_bits"]
    assert document["extraction"]["training"]["rate"] > 0.5
    assert document["figures"]["copied"] > 0.5
    assert document["vocabulary"]["leaking_tokens"] > 0
    again = json.loads(run_cli(*asked, "--json").text)
    assert again == document
    failed = run_cli(*asked, "--fail-above", "extraction=0.1", "--fail-above", "vocabulary=0")
    assert failed.code == 1
    assert "extraction is" in failed.err
    assert "vocabulary is" in failed.err


def test_its_figures_stand_in_the_model_card(learnt_by_heart: Path, tmp_path: Path, run_cli: RunCli) -> None:
    done = run_cli("export", learnt_by_heart / "run", "-o", tmp_path / "hf", "--to", "hf")
    assert done.code == 0, done.err
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "## Audit" in card
    assert "| extraction |" in card
    assert "no proof" in card


def test_text_that_is_not_that_of_the_lineage_is_told(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "other.txt").write_text(english(40, seed=7))
    for name, corpus in (("own", tiny.corpus), ("other", tmp_path / "other.txt")):
        done = run_cli("prepare", corpus, "-t", tiny.tokenizer, "-o", tmp_path / name, "-q")
        assert done.code == 0, done.err
    asked = ("--samples", 1, "--prefixes", 2, "--sample-tokens", 8, "-q", "--json")
    own = run_cli("audit", tiny.run, "--data", tmp_path / "own", *asked)
    assert (own.code, own.err, json.loads(own.text)["of_the_lineage"]) == (0, "", True)
    other = run_cli("audit", tiny.run, "--data", tmp_path / "other", *asked)
    assert (other.code, json.loads(other.text)["of_the_lineage"]) == (0, False)
    other.error(0, "audit", "other: not that of the lineage")


def test_a_model_without_a_lineage_and_documents_shorter_than_a_passage_are_audited(
    tiny: Tiny, tmp_path: Path, run_cli: RunCli
) -> None:
    run = ("-s", f"run_dir={tmp_path}/run", "-s", "model.context_length=64", "-s", "train.steps=1")
    assert run_cli("pretrain", tiny.run_file, "-q", *run).code == 0
    assert run_cli("export", tmp_path / "run", "-o", tmp_path / "hf", "--to", "hf").code == 0
    assert run_cli("import", tmp_path / "hf", "-o", tmp_path / "model").code == 0
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": "the old sailor"}) + "\n" for _ in range(40)))
    (tmp_path / "held.txt").write_text(english(40, seed=8))
    texts = (
        tmp_path / "short.jsonl",
        "--validation",
        tmp_path / "held.txt",
        "-t",
        tmp_path / "model" / "tokenizer.json",
    )
    done = run_cli("prepare", *texts, "-o", tmp_path / "text", "-q")
    assert done.code == 0, done.err
    asked = ("--samples", 1, "--prefixes", 2, "--sample-tokens", 8, "-q", "--json")
    found = run_cli("audit", tmp_path / "model", "--data", tmp_path / "text", *asked)
    assert found.code == 0, found.err
    document = json.loads(found.text)
    assert document["of_the_lineage"] is None
    assert "no document of the training text" in document["skipped"]["passages"]
    assert (tmp_path / "model" / "audit.json").is_file()
    again = run_cli("import", tmp_path / "hf", "-o", tmp_path / "model", "--force")  # the audit is of what it replaces
    assert again.code == 0, again.err
    (tmp_path / "model" / "audit.json").write_text('{"a user\'s": "own"}')
    run_cli("import", tmp_path / "hf", "-o", tmp_path / "model", "--force").error(
        5, "import", "audit.json, which gptcli"
    )


def test_an_audit_of_other_weights_of_the_same_name_is_not_shown(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    steps = ("-q", "-s", f"run_dir={tmp_path}/run", "-s", "train.steps=1")
    assert run_cli("pretrain", tiny.run_file, *steps).code == 0
    assert run_cli("audit", tmp_path / "run", "--samples", 1, "--prefixes", 2, "--sample-tokens", 8, "-q").code == 0
    assert json.loads(run_cli("lineage", tmp_path / "run", "--json").text)["audit"]
    assert run_cli("pretrain", tiny.run_file, *steps, "--force", "-s", "runtime.seed=2").code == 0
    assert json.loads(run_cli("lineage", tmp_path / "run", "--json").text)["audit"] is None


def test_what_cannot_be_measured_is_said(tiny: Tiny, run_cli: RunCli) -> None:
    found = run_cli("audit", tiny.run, "--samples", 2, "--prefixes", 5, "--sample-tokens", 8, "--json", "-q")
    assert found.code == 0, found.err
    document = json.loads(found.text)
    assert "context has 31 tokens" in document["skipped"]["passages"]
    assert 0 <= document["membership"]["loss"]["auc"] <= 1
    asked = ("audit", tiny.run, "--samples", 1, "--prefixes", 2, "-q", "--sample-tokens", 8)
    assert "canaries: was not measured" in run_cli(*asked, "--fail-above", "canaries=0").err
    run_cli(*asked, "--fail-above", "canaries").error(2, "audit", "NAME=VALUE")
    run_cli(*asked, "--canaries", tiny.run_file).error(3, "audit", "not JSON")
