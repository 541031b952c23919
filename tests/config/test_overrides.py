"""-s KEY=TEXT and paths: text is taken as it stands, and ~ is the home directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.base.errors import ConfigError
from gptcli.config.train import PretrainConfig
from gptcli.config.yaml_file import parse

FILE = "run_dir: r\ndata: {train: [a.txt]}\n"


def read(*overrides: str, text: str = FILE) -> PretrainConfig:
    return parse(PretrainConfig, text, name="run.yaml", overrides=overrides).value


def problem(*overrides: str, text: str = FILE) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*overrides, text=text)
    return caught.value.problems[0]


@pytest.mark.parametrize(
    "text",
    [
        "notes #1.txt",
        "*.txt",
        "-",
        "@list",
        "[draft] a.txt",
        "[ab]*.txt",
        "a: b",
        '"Hi," she said',
        "- one",
        "!x",
        "%",
        "|",
    ],
)
def test_text_is_taken_as_it_stands(text: str) -> None:
    assert read(f"data.train={text}").data.train == (text,)
    assert read(f"train.sample_prompt={text}").train.sample_prompt == text


def test_lists_null_and_empty_text_of_an_override() -> None:
    assert read("data.train=[a.txt, 'b #1.txt']").data.train == ("a.txt", "b #1.txt")
    assert read("tokenizer.path=null").tokenizer.path is None
    assert read("train.sample_prompt=").train.sample_prompt == ""
    assert read("train.sample_prompt=null").train.sample_prompt == "null"
    assert "name the file by a glob" in problem("data.train=caf\udce9.txt")


@pytest.mark.parametrize(
    ("train", "hint"),
    [("*.txt", 'put *.txt in quotes: "*.txt"'), ("[*.txt, a]", 'put *.txt in quotes: "*.txt"'),
     ("@list.txt", 'put @list.txt in quotes: "@list.txt"'), ("\n  - -", 'for stdin write "-" in quotes')],
    ids=repr,
)  # fmt: skip
def test_a_file_says_what_to_put_in_quotes(train: str, hint: str) -> None:
    assert hint in problem(text=f"run_dir: r\ndata:\n  train: {train}\n")


def test_a_tilde_is_the_home_directory_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read(
        "data.cache_dir=~/cache", text="run_dir: ~/run\ndata: {train: [~/a.txt, b~.txt]}\ntokenizer: {path: ~/t}\n"
    )
    assert config.run_dir == f"{tmp_path}/run"
    assert config.data.train == (f"{tmp_path}/a.txt", "b~.txt")
    assert (config.data.cache_dir, config.tokenizer.path) == (f"{tmp_path}/cache", f"{tmp_path}/t")
    assert read("train.sample_prompt=~/x").train.sample_prompt == "~/x"


def test_variables_are_refused_unless_a_file_has_that_name(tmp_path: Path) -> None:
    assert "variables such as $DATA are not expanded in run files" in problem("data.train=$DATA/a.txt")
    assert "${HOME}" in problem(text="run_dir: ${HOME}/run\ndata: {train: [a]}\n")
    (tmp_path / "a$b.txt").touch()
    assert read(f"data.train={tmp_path}/a$b.txt").data.train == (f"{tmp_path}/a$b.txt",)
    assert read("data.train=price$5.txt").data.train == ("price$5.txt",)
