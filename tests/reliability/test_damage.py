"""Damage of any kind to a checkpoint is found before a weight is used, and the checkpoint before it is taken.

500 mutations:  pytest -m slow tests/test_damage.py
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from faults import Home, digests
from safetensors.torch import load_file

from gptcli.api.open_model import load
from gptcli.base import fsio
from gptcli.base.errors import GptcliError, NumericalError
from gptcli.model.safetensors_io import write_tensors
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints
from gptcli.train.retention import newest_verified

KINDS = (
    "flip a bit", "cut", "grow", "delete", "empty", "zero a block", "swap with another file", "older file",
    "empty directory",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("damage"))
    home.run("control")
    return home


def mutate(directory: Path, older: Path, kind: str, draw: random.Random) -> str:
    """Damage one file of a checkpoint; -> what was done. Its content is another afterwards."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    file = draw.choice(files)
    before = file.read_bytes()
    if kind == "empty directory":
        for each in files:
            each.unlink()
    elif kind == "delete":
        file.unlink()
    elif kind == "swap with another file":
        other = draw.choice([each for each in files if each != file])
        content = other.read_bytes()
        other.write_bytes(before)
        file.write_bytes(content)
    elif kind == "older file":
        # tokenizer.json and lineage.json are the same in both; every other file is not.
        file = draw.choice([each for each in files if each.name not in ("tokenizer.json", "lineage.json")])
        before = file.read_bytes()
        shutil.copy(older / file.name, file)
    else:
        content = bytearray(before)
        place = draw.randrange(len(content))
        if kind == "flip a bit":
            content[place] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[place:]
        elif kind == "grow":
            content += bytes(draw.randrange(1, 9))
        elif kind == "empty":
            content.clear()
        else:
            content[place : place + 64] = bytes(len(content[place : place + 64]))
            if bytes(content) == before:
                content[place] ^= 255
        file.write_bytes(content)
    assert kind == "empty directory" or not file.exists() or file.read_bytes() != before
    return f"{kind} {file.name}"


def is_found(home: Home, number: int, place: Path) -> None:
    draw = random.Random(number)
    run = place / f"run-{number}"
    shutil.copytree(home.path / "control", run, symlinks=True)
    newest, older = checkpoints(run)[:2]
    what = mutate(newest, older, KINDS[number % len(KINDS)], draw)
    with pytest.raises((GptcliError, OSError)):
        checkpoint.verify(newest)
    warnings: list[str] = []
    assert newest_verified(run, warnings.append) == older, what
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    shutil.rmtree(run)


def test_a_damaged_checkpoint_is_found_and_passed_over_with_one_warning(home: Home, tmp_path: Path) -> None:
    for number in range(18):
        is_found(home, number, tmp_path)


@pytest.mark.slow
def test_500_damaged_checkpoints_are_found_and_passed_over(home: Home, tmp_path: Path) -> None:
    for number in range(500):
        is_found(home, number, tmp_path)
    print("\nG5: 500 mutations")


def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_end(home: Home) -> None:
    run = home.copy("control", "fallback")
    newest, older = checkpoints(run)[:2]
    mutate(newest, older, "flip a bit", random.Random(5))
    ended = home.run("fallback", "--resume")
    assert sum("warning" in line for line in ended.err.splitlines()) == 1
    assert home.same_end("fallback")


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors"])
def test_values_that_are_not_finite_are_found_though_the_manifest_fits(home: Home, file: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(home.newest("control"), tmp_path / "step-000020"))
    tensors = {name: tensor.clone() for name, tensor in load_file(path / file).items()}
    name = sorted(name for name, tensor in tensors.items() if tensor.ndim)[3]
    tensors[name].view(-1)[7] = torch.inf
    (path / file).unlink()
    write_tensors(tensors, path / file)
    described = {each.name: fsio.describe(each) for each in path.iterdir() if each.name != fsio.MANIFEST}
    fsio.write_json(path / fsio.MANIFEST, {"files": described})
    with pytest.raises(NumericalError, match=f"{file}: {name} holds values that are not finite"):
        checkpoint.verify(path)
    if file == "model.safetensors":
        with pytest.raises(NumericalError, match="not finite"):
            load(path)


def test_a_manifest_that_says_nothing_of_a_file_is_damaged(home: Home, tmp_path: Path) -> None:
    path = Path(shutil.copytree(home.newest("control"), tmp_path / "step-000020"))
    fsio.write_json(path / fsio.MANIFEST, {"files": {}})
    with pytest.raises(GptcliError, match=r"manifest.json: says nothing of config.json"):
        checkpoint.verify(path)


CHANGES = {
    "model.hidden_size": "64",
    "model.dropout": "0.2",
    "optim.name": "adamw",
    "optim.learning_rate": "0.001",
    "data.errors": "replace",
    "tokenizer.vocab_size": "310",
    "train.batch_size": "8",
    "runtime.seed": "2",
}


@pytest.mark.parametrize("key", CHANGES)
def test_resuming_with_another_setting_names_the_key_and_changes_nothing(home: Home, key: str) -> None:
    before = digests(home.newest("control"))
    ended = home.run("control", "--resume", "-s", f"{key}={CHANGES[key]}", code=3)
    (line,) = [line for line in ended.err.splitlines() if "error" in line]
    assert "cannot resume: " in line
    assert key in line
    assert digests(home.newest("control")) == before


def test_a_finished_run_says_so(home: Home) -> None:
    assert f"already done at step {home.steps}; raise train.steps" in home.run("control", "--resume").err
