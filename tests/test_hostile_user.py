"""What somebody who wants to break the commands has found, each as the command that did it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import RunCli, Tiny

MARK = "\ufeff".encode()  # what some programs put before UTF-8


# --------------------------------------------------------------------------------------------- texts under a constraint


@pytest.mark.parametrize("form", [[], ["--n", "2"], ["--json"], ["--stream"]], ids=["text", "n", "json", "stream"])
def test_a_choice_comes_whole_however_few_tokens_are_allowed(form: list[str], tiny: Tiny, run_cli: RunCli) -> None:
    choice = "a choice of many tokens"
    result = run_cli("generate", tiny.run, "The", "--choices", f"{choice},{choice}!", "--max-tokens", 1, *form)
    assert (result.code, result.err) == (0, "")
    texts = [json.loads(result.text)["text"]] if "--json" in form else result.text.splitlines()
    assert set(texts) <= {choice, f"{choice}!"}


def test_a_choice_that_the_context_has_no_room_for_is_told(tiny: Tiny, run_cli: RunCli) -> None:
    run_cli("generate", tiny.run, "The", "--choices", "x" * 40).error(3, "generate", "a choice takes up to 40 tokens")
    full = "The old sailor found a lantern by the river before dawn"
    run_cli("generate", tiny.run, full, "--choices", "x" * 20).error(3, "generate", "--truncate left")
    cut = run_cli("generate", tiny.run, full, "--choices", "x" * 20, "--truncate", "left")
    assert (cut.code, cut.out) == (0, b"x" * 20)


@pytest.mark.parametrize("form", [[], ["--n", "2"], ["--stream"]], ids=["text", "n", "stream"])
def test_a_text_cut_before_it_matches_is_a_failure(form: list[str], tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("generate", tiny.run, "The", "--regex", "é{30}", "--max-tokens", 5, *form)
    result.error(1, "generate", "cut after 5 tokens, before it matches --regex; raise --max-tokens")
    assert set(result.text) <= {"é", "\n"}  # and no half of one


# --------------------------------------------------------------------------------------------------------- what is read


def test_a_byte_order_mark_before_standard_input_is_no_part_of_it(tiny: Tiny, run_cli: RunCli) -> None:
    short = ("--max-tokens", "2", "--temperature", "0")
    for arguments, content in (
        (["generate", tiny.run, "--jsonl", *short], b'{"prompt": "a"}\n'),
        (["generate", tiny.run, *short], b"a"),
        (["score", tiny.run], b"hi\n"),
        (["score", tiny.run, "--jsonl"], b'{"text": "hi"}\n'),
        (["decode", tiny.tokenizer], b"12 13\n"),
        (["decode", tiny.tokenizer, "--json"], b'{"ids": [12]}\n'),
    ):
        with_mark, without = run_cli(*arguments, input=MARK + content), run_cli(*arguments, input=content)
        assert (with_mark.code, with_mark.out, with_mark.err) == (0, without.out, "")


@pytest.mark.parametrize("part", [".", "checkpoints/step-000006"])
def test_a_run_stands_for_its_tokenizer(part: str, tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    there = tiny.run / part
    assert run_cli("encode", there, input="the map").out == run_cli("encode", tiny.tokenizer, input="the map").out
    assert run_cli("count", there, input="the map").code == 0
    assert run_cli("prepare", tiny.corpus, "-t", there, "-o", tmp_path / "prepared").code == 0


def test_a_directory_without_a_tokenizer_is_told(tmp_path: Path, run_cli: RunCli) -> None:
    run_cli("encode", tmp_path, input="a").error(2, "encode", "tokenizer.json: no such file")


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize(
    "arguments",
    [
        ["train-tokenizer", "x", "-o", "-"],
        ["prepare", "x", "-t", "x", "-o", "-"],
        ["import", "x", "-o", "-"],
        ["export", "x", "-o", "-", "--to", "hf"],
        ["merge", "x", "-o", "-"],
        ["plot", "x", "-o", "-"],
        ["plot", "x", "--tensorboard", "-"],
        ["quickstart", "-o", "-"],
        ["evaluate", "x", "x", "--task", "choice", "--records", "-"],
    ],
    ids=lambda arguments: " ".join((arguments[0], arguments[-2])),
)
def test_a_dash_is_no_output(arguments: list[str], tmp_path: Path, run_cli: RunCli) -> None:
    run_cli(*arguments, cwd=tmp_path).error(2, arguments[0], "this is not written to stdout; name a file or directory")
    assert list(tmp_path.iterdir()) == []


def test_one_thing_is_not_told_as_many(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    said = run_cli("generate", tiny.run, "--jsonl", input='{"id": 1}\n').err
    said += run_cli("pretrain", tiny.run_file, "-s", f"run_dir={tmp_path / 'run'}", "-s", "train.steps=1").err
    assert not re.search(r"\b1 \w+s\b", said), said
    assert "1 thread\n" in said
