"""The pipelines in examples/: their data are sound, and each script runs from beginning to end."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, RunCli, english, environment, tiny_run_file

from gptcli.config import yaml_file, yaml_write
from gptcli.config.corpus import CorpusRecipe
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.conversation import ASSISTANT, USER
from gptcli.data.messages import read_messages

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text().splitlines()]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: path.parent.name)
def test_the_run_file_of_a_pipeline_loads_and_loads_again(path: Path) -> None:
    kind = {"finetune": FinetuneConfig, "recipe": CorpusRecipe}.get(path.stem, PretrainConfig)
    loaded = yaml_file.load(kind, path)
    assert yaml_file.parse(kind, yaml_write.dump(loaded.value), name="dump").value == loaded.value


def test_the_shop_gives_the_same_answer_to_every_question_of_a_topic() -> None:
    """A question that begins a conversation has one answer, and the held-out ones are none of them."""
    answers: dict[str, set[str]] = {}
    for row in rows("shop/train.jsonl"):
        messages = [message for message in read_messages(row["messages"], "train") if message.role != "system"]
        answers.setdefault(messages[0].content, set()).add(messages[1].content)
    assert len(answers) >= 150
    assert all(len(found) == 1 for found in answers.values())
    topics = {next(iter(found)) for found in answers.values()}
    for row in rows("shop/heldout.jsonl"):
        *before, question, answer = read_messages(row["messages"], "heldout")
        assert (question.role, answer.role) == (USER, ASSISTANT)
        assert answer.content in topics
        assert all(fact in answer.content for fact in row["facts"])
        assert before or question.content not in answers


def test_the_reviews_are_balanced_and_those_held_out_are_no_training_rows() -> None:
    train, held_out = rows("reviews/train.jsonl"), rows("reviews/heldout.jsonl")
    assert len(train) >= 300
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}
    for part in (train, held_out):
        assert 0.35 < sum(row["label"] == "positive" for row in part) / len(part) < 0.65


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer: Path, run_cli: RunCli) -> Path:
    """A directory with the examples, `gptcli` in bin/, and in quickstart/run a model of six steps."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(EXAMPLES, work / "examples")
    (work / "bin").mkdir()
    (work / "bin" / "gptcli").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gptcli "$@"\n')
    (work / "bin" / "gptcli").chmod(0o755)
    (work / "run.yaml").write_text(tiny_run_file(corpus, work / "quickstart" / "run", tokenizer=tokenizer))
    made = run_cli("pretrain", work / "run.yaml", "-q", "-s", "model.context_length=256", "-s", "train.batch_size=1")
    assert made.code == 0, made.err
    return work


def one_core() -> None:
    """Threads of models so small only wait for each other."""
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})


def pipeline(work: Path, cache: Path, name: str, *arguments: str) -> Result:
    path = f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}"
    script = work / "examples" / name / "run.sh"
    done = subprocess.run(
        [script, *arguments],
        capture_output=True,
        env=environment(cache, {"PATH": path, "PYTHONPATH": str(ROOT)}),
        cwd="/",
        timeout=240,
        preexec_fn=one_core,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode())


needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="the pipelines use jq")


@needs_jq
def test_the_basic_pipe_leads_from_text_to_text(work: Path, session_cache: Path) -> None:
    small = ("-s", "train.steps=2", "-s", "train.batch_size=1", "-s", "model.hidden_size=16")
    result = pipeline(work, session_cache, "pipe", *small)
    assert result.code == 0, result.err
    document, end = json.JSONDecoder().raw_decode(result.text)
    assert 1 < document["bits_per_byte"] < 8
    assert result.text[end:].startswith("\nThe value of")


@needs_jq
def test_the_shop_is_tuned_and_asked(work: Path, session_cache: Path) -> None:
    result = pipeline(work, session_cache, "shop", "-s", "train.epochs=0.05")
    assert result.code == 0, result.err
    found = json.loads(result.text[result.text.rindex("{") :])
    assert found["questions"] == len(rows("shop/heldout.jsonl"))
    again = pipeline(work, session_cache, "shop")
    assert again.code == 5
    assert "runs/shop" in again.err


@needs_jq
def test_the_reviews_are_learnt_and_labelled(work: Path, session_cache: Path) -> None:
    result = pipeline(work, session_cache, "reviews", "-s", "train.epochs=0.05")
    assert result.code == 0, result.err
    first, second, *rest = result.text.splitlines()
    assert all(line.split("\t")[0] in ("positive", "negative") for line in (first, second))
    assert json.loads("".join(rest))["reviews"] == len(rows("reviews/heldout.jsonl"))


@pytest.mark.slow
def test_a_model_learns_to_add_from_rewards_alone(work: Path, session_cache: Path) -> None:
    result = pipeline(work, session_cache, "reward")
    assert result.code == 0, result.err
    lines = map(json.loads, (work / "runs/adds/metrics.jsonl").read_text().splitlines())
    rewards = [record["reward"] for record in lines if record["kind"] == "train"]
    assert sum(rewards[:5]) / 5 < 0.2
    assert sum(rewards[-20:]) / 20 > 0.8


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_shards_under_an_engine_give_the_bytes_of_one_process(engine: str, tmp_path: Path) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    for number in range(3):
        texts = [english(5, seed + 8 * number) for seed in range(10)]
        (tmp_path / f"raw-{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    program = Path(__file__).parent.parent / "examples" / "corpus" / "shards.py"
    shards = sorted(map(str, tmp_path.glob("raw-*.jsonl")))
    command = [sys.executable, str(program), *shards, "-o", str(tmp_path / "clean"), "--engine", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"3 shards under {engine}: the same bytes as one process" in done.stdout
