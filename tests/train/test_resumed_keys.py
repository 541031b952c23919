"""What identifies a run that is resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gptcli.base.errors import ConfigError
from gptcli.config import yaml_file, yaml_write
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.train.resume import as_it_began, changes


def test_keys_of_another_task_that_an_older_run_file_holds_do_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    config = FinetuneConfig(run_dir="r", base="b", task="instruct", data=RowsConfig(train=("rows.jsonl",)))
    run_yaml = tmp_path / "run.yaml"
    text = yaml_write.dump(config)
    run_yaml.write_text(text.replace("label_field: label", "label_field: class").replace(" beta: null", " beta: 0.5"))
    assert run_yaml.read_text() != text
    with pytest.raises(ConfigError, match=r"prefer.*is for task prefer, not for task instruct; leave it out"):
        yaml_file.load(FinetuneConfig, run_yaml)
    assert as_it_began(config, run_yaml) == config

    now = dataclasses.asdict(config)
    saved = dataclasses.asdict(config)
    saved["data"]["label_field"] = "class"
    saved["prefer"]["beta"] = 0.5
    assert changes(config, now, saved) == {}
    saved["data"]["prompt_field"] = "question"
    assert changes(config, now, saved) == {"data.prompt_field": "data.prompt_field is prompt, was question"}
