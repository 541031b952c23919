"""What somebody who wants to break the commands has found, each as the command that did it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli, Tiny

from gptcli.api.open_model import load
from gptcli.base.errors import DataError
from gptcli.config.model import ModelConfig
from gptcli.interop import peft

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


def test_an_argument_that_is_no_text_is_told(tiny: Tiny, run_cli: RunCli) -> None:
    run_cli("generate", tiny.run, b"\xff".decode(errors="surrogateescape")).error(3, "generate", "is not UTF-8")


# --------------------------------------------------------------------------------------- checkpoints from somebody else


def changed_copy(tiny: Tiny, to: Path, **model: Any) -> Path:
    """The checkpoint with other values in the model of its config.json."""
    shutil.copytree(tiny.checkpoint, to)
    document = json.loads((to / "config.json").read_text())
    document["model"] |= model
    (to / "config.json").write_text(json.dumps(document))
    return to


WRONG = ["2", None, 2.5, True, [2], {"a": 2}, -1, 1e300, "", "\x1b[31m"]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelConfig)])
def test_a_config_with_a_value_of_the_wrong_kind_is_refused_or_read(name: str, tiny: Tiny, tmp_path: Path) -> None:
    for number, wrong in enumerate(WRONG):
        with suppress(DataError):
            load(changed_copy(tiny, tmp_path / str(number), **{name: wrong}))


def test_positions_without_end_cost_no_memory(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    far = changed_copy(tiny, tmp_path / "far", context_length=10**9)
    run_cli("generate", far, "a").error(3, "generate", "context_length: must be <= 1048576")
    wide = changed_copy(tiny, tmp_path / "wide", context_length=1 << 20, head_dim=1024)
    run_cli("generate", wide, "a").error(3, "generate", "rotary positions of heads 1024 wide reach to 131072")
    other = changed_copy(tiny, tmp_path / "other", context_length=1 << 20, head_dim=128)  # refused before its tables
    limited = "import resource as r, sys; r.setrlimit(r.RLIMIT_AS, (4 << 30,) * 2); from gptcli.cli.main import run; "
    result = run_cli("generate", other, "a", python=[sys.executable, "-c", limited + "sys.exit(run(sys.argv[1:]))"])
    result.error(3, "generate", "model.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"r": "2"}, {"r": 2.5}, {"r": True}, {"r": None}, {"r": []}, {"r": -1}, {"r": 1 << 40}, {"lora_alpha": None},
        {"lora_alpha": "much"}, {"lora_alpha": []}, {"lora_alpha": "NaN"}, {"target_modules": None},
        {"target_modules": "q"}, {"target_modules": [["q"]]}, {"target_modules": [1]}, {"target_modules": {}},
        {"target_modules": []},
    ],
    ids=str,
)  # fmt: skip
def test_an_adapter_with_a_value_of_the_wrong_kind_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    names = peft.names_of(ModelConfig())
    good = {"r": 2, "lora_alpha": 4.0, "target_modules": peft._their_names("attention", names)}
    (tmp_path / peft.CONFIG).write_text(json.dumps(good))
    assert peft.read_lora_config(tmp_path, names).rank == 2
    (tmp_path / peft.CONFIG).write_text(json.dumps(good | changes))
    with pytest.raises(DataError, match="not an adapter of gptcli"):
        peft.read_lora_config(tmp_path, names)


def without_end_of_text(tiny: Tiny, to: Path) -> Path:
    """The checkpoint with a tokenizer that has no control token."""
    shutil.copytree(tiny.checkpoint, to)
    document = json.loads((to / "tokenizer.json").read_text())
    document["added_tokens"] = []
    (to / "tokenizer.json").write_text(json.dumps(document))
    return to


def test_without_end_of_text_the_first_token_of_a_text_is_given_and_not_scored(
    tiny: Tiny, tmp_path: Path, run_cli: RunCli
) -> None:
    there = without_end_of_text(tiny, tmp_path / "bare")
    model, tokenizer = load(there)
    text = "The old sailor found a lantern"
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        logprobs = model(ids[:, :-1]).double().log_softmax(-1).gather(2, ids[:, 1:, None])
    record = json.loads(run_cli("score", there, input=text + "\n").text)
    assert record["logprob"] == pytest.approx(float(logprobs.sum()), rel=1e-5)
    assert record["tokens"] == ids.shape[1] - 1
    assert record["bytes"] == len(text) - len(tokenizer.token_bytes[ids[0, 0]])
    document = tmp_path / "text.txt"
    document.write_text(text)
    found = json.loads(run_cli("evaluate", there, document, "--json").text)
    assert found["tokens"] == record["tokens"]
    assert found["bits_per_byte"] == pytest.approx(record["bits_per_byte"])


def test_without_end_of_text_choices_need_a_text_before_them(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    there, rows = without_end_of_text(tiny, tmp_path / "bare"), tmp_path / "rows.jsonl"
    row = {"question": "Who?", "before": "", "choices": ["a cat", "a dog"], "answer": 0}
    rows.write_text(json.dumps(row) + "\n")
    assert run_cli("evaluate", there, rows, "--task", "choice").code == 0
    result = run_cli("evaluate", there, rows, "--task", "choice", "--template", "{before}")
    result.error(3, "evaluate", "rows.jsonl:1: no text before the choices, and the tokenizer has no <|endoftext|>")


# ------------------------------------------------------------------------------------------------- names and run files


@pytest.mark.parametrize("name", ["run_dir", "data.cache_dir", "base"])
@pytest.mark.parametrize("value", ["", " "])
def test_a_name_that_no_directory_can_have_is_refused(name: str, value: str, tiny: Tiny, run_cli: RunCli) -> None:
    run_file = tiny.root / "classify.yaml"
    run_file.write_text(f"task: classify\nbase: {tiny.run}\nrun_dir: x\ndata: {{train: [x.jsonl]}}\n")
    chosen = run_file if name == "base" else tiny.run_file
    run_cli("config", "check", chosen, "-s", f"{name}={value}").error(2, "config", name, "must name a directory")


def test_a_name_with_a_nul_is_refused(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "run.yaml").write_text('run_dir: "a\\0b"\ndata: {train: [x.txt]}\n')
    run_cli("config", "check", tmp_path / "run.yaml").error(2, "config", "run_dir: must name a directory")


def test_an_empty_name_is_no_output(tmp_path: Path, run_cli: RunCli) -> None:
    run_cli("merge", "x", "-o", "", cwd=tmp_path).error(2, "merge", "the name is empty")


def test_a_run_file_may_come_through_a_pipe(tiny: Tiny, run_bash: RunCli) -> None:
    result = run_bash(f"gptcli config check <(cat {tiny.run_file}); gptcli config show <(cat {tiny.run_file}) | wc -l")
    assert (result.code, result.err) == (0, "")
    assert int(result.text) > 50


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["pretrain", "/dev/zero"], 2), (["config", "show", "/dev/zero"], 2), (["encode", "/dev/zero"], 3)],
    ids=lambda value: str(value),
)
def test_a_file_without_end_is_not_read_to_its_end(arguments: list[str], code: int, run_cli: RunCli) -> None:
    run_cli(*arguments).error(code, arguments[0], "/dev/zero: larger than")


def test_prepared_text_is_not_taken_for_a_damaged_model(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    prepared = tmp_path / "prepared"
    assert run_cli("prepare", tiny.corpus, "-t", tiny.run / "best" / "tokenizer.json", "-o", prepared).code == 0
    run_cli("generate", prepared, "The").error(3, "generate", "is prepared text; train on it: data.train: [")


# ------------------------------------------------------------------------------------------------ what a newcomer does


def test_the_nearest_command_is_named(run_cli: RunCli) -> None:
    for typed, wanted in (
        ("train", "train-tokenizer or pretrain?"),
        ("pretrian", "did you mean pretrain?"),
        ("", "''"),
    ):
        result = run_cli(typed)
        assert (result.code, result.out) == (2, b"")
        assert wanted in result.err


def test_an_option_that_is_a_key_of_the_run_file_is_told_so(tiny: Tiny, run_cli: RunCli) -> None:
    run_cli("pretrain", tiny.run_file, "--steps", "5").error(2, "pretrain", "set by -s KEY=VALUE")


def test_a_text_is_no_run_file(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "corpus.txt").write_text("He said: well: no.\n")
    run_cli("pretrain", "corpus.txt", cwd=tmp_path).error(2, "pretrain", "names text under data.train")


def test_what_is_near_a_run_is_told_apart_from_damage(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    shutil.copytree(tiny.run, tmp_path / "work" / "run", symlinks=True)
    shutil.copy(tiny.run / "best" / "tokenizer.json", tmp_path / "work")
    run_cli("generate", tmp_path / "work", "The").error(3, "generate", "work/run?")
    run_cli("generate", tiny.run / "run.yaml", "The").error(2, "generate", "run.yaml: is a file; want the directory")


def test_a_text_that_is_not_there_is_told_before_the_machine_is_measured(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "run.yaml").write_text("run_dir: run\ndata: {train: [nowhere.txt]}\n")
    result = run_cli("pretrain", "run.yaml", "--budget", "60s", cwd=tmp_path)
    assert result.err.splitlines() == ["gptcli pretrain: error: nowhere.txt: no such file"]


def test_a_run_that_cannot_be_resumed_says_what_was_and_what_is(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    shutil.copytree(tiny.run, tmp_path / "run", symlinks=True)
    asked = ("pretrain", tmp_path / "run" / "run.yaml", "-s", f"run_dir={tmp_path / 'run'}", "--resume")
    (line,) = run_cli(*asked, "-s", "optim.learning_rate=0.5").error(3, "pretrain", "cannot resume")
    assert re.search(
        r"optim.learning_rate is 0.5, was [\d.e-]+; .*run/run.yaml, or name .* finetune with task: text", line
    )
