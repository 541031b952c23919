"""A slip of the finger in the key of a run file: refused with its line, and with the key that was meant."""

from __future__ import annotations

import dataclasses
import random

import pytest
import yaml

from gptcli.base.errors import ConfigError
from gptcli.config import data as data_module
from gptcli.config import finetune, generate, model, train, yaml_file, yaml_write
from gptcli.config.schema import Section
from gptcli.config.train import PretrainConfig

WHOLE = yaml_write.dump(PretrainConfig(run_dir="run", data=data_module.DataConfig(train=("corpus.txt",))))


def typo(word: str, draw: random.Random) -> str:
    """The word with one slip of a finger: a letter left out, doubled, wrong, or two of them swapped."""
    place = draw.randrange(len(word))
    letter = draw.choice("abcdefghijklmnopqrstuvwxyz_")
    match draw.randrange(4):
        case 0:
            return word[:place] + word[place + 1 :]
        case 1:
            return word[:place] + letter + word[place:]
        case 2:
            return word[:place] + letter + word[place + 1 :]
        case _:
            return word[:place] + word[place + 1 : place + 2] + word[place] + word[place + 2 :]


def test_500_typos_in_keys_are_refused_with_the_line_and_mostly_the_key_that_was_meant() -> None:
    lines = WHOLE.splitlines()
    keys = list(yaml.safe_load(WHOLE))
    section, dotted = "", []
    for line in lines:
        name = line.strip().partition(":")[0]
        section = name if not line.startswith(" ") and line.endswith(":") else section if line.startswith(" ") else ""
        dotted.append(f"{section}.{name}" if line.startswith(" ") else name)
    draw, right, tried = random.Random(16), 0, 0
    while tried < 500:
        number = draw.randrange(len(lines))
        name = dotted[number].rpartition(".")[2]
        wrong = typo(name, draw)
        siblings = {each.rpartition(".")[2] for each in dotted}
        if wrong in siblings or wrong in keys or not wrong:
            continue
        tried += 1
        changed = [*lines]
        changed[number] = changed[number].replace(name, wrong, 1)
        with pytest.raises(ConfigError) as caught:
            yaml_file.parse(PretrainConfig, "\n".join(changed) + "\n", name="run.yaml")
        (problem,) = [each for each in caught.value.problems if "unknown key" in each]
        assert problem.startswith(f"run.yaml:{number + 1}: "), problem
        right += f"did you mean '{dotted[number]}'?" in problem
    print(f"\nG16: {right} of {tried} suggestions right")
    assert right >= 0.9 * tried


def test_every_number_of_a_run_file_has_a_lower_bound() -> None:
    modules = (data_module, finetune, generate, model, train)
    found = {each for module in modules for each in vars(module).values() if isinstance(each, type)}
    classes = [each for each in found if issubclass(each, Section)]
    for section in classes:
        if not dataclasses.is_dataclass(section):
            continue
        for declared in dataclasses.fields(section):
            if any(kind in str(declared.type).split(" | ") for kind in ("int", "float")):
                meta = declared.metadata
                assert meta.get("ge") is not None or meta.get("gt") is not None, f"{section.__name__}.{declared.name}"
