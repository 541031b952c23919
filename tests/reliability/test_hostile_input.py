"""Damaged and hostile input of every kind that gptcli reads: an error it knows or a result, and never for long.

10,000 in process and 300 through the command:  pytest -m slow tests/test_hostile_input.py
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Home, Trial
from test_streams import DOCUMENTED, RECORD, USES, leaves

from gptcli.api.generate import text_or_messages
from gptcli.api.records import read_items
from gptcli.api.score import read_records
from gptcli.api.tokens import read_ids
from gptcli.base.errors import GptcliError
from gptcli.base.report import Report
from gptcli.config import yaml_file
from gptcli.config.generate import GenerateOptions
from gptcli.config.train import PretrainConfig
from gptcli.data import shards
from gptcli.data.text import TextOptions, find_sources, read_pieces
from gptcli.data.tokenizer import Tokenizer
from gptcli.model import safetensors_io
from gptcli.train import checkpoint
from gptcli.train.metadata import read_config

SECONDS = 2.0  # for one input
SPECIAL = [
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b"{" * 3000, b'{"a":' * 2000, b"&a [*a, *a]"),
    *(b"!!python/name:os.system", b"NaN", b"1e999", b"9" * 5000, b"-", b"\n" * 50, b"\t", b"null", b'"\\ud800"'),
    *(b"\x1b[31m", b"../../etc/passwd", b"<|endoftext|>", "𝔘é\u202e".encode(), b"%s%n", b"1:30"),
    *(b"0x", b"---\n---\n"),
]


def damaged(good: bytes, draw: random.Random) -> bytes:
    """The content with one to four of: bits flipped, stretches cut, repeated or replaced, hostile pieces put in."""
    content = bytearray(good)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice([0, 1, 2, 8, 64, 1 << 20]))
        match draw.randrange(6):
            case 0 if content:
                content[start % len(content)] ^= 1 << draw.randrange(8)
            case 1:
                del content[start:end]
            case 2:
                content[start:start] = content[start : min(end, start + 64)] * draw.choice([1, 2, 50])
            case 3:
                content[start:end] = bytes(draw.randrange(256) for _ in range(draw.randint(0, 8)))
            case 4:
                content[start:end] = draw.choice(SPECIAL)
            case _:
                number = draw.choice([b"-1", b"0", b"1e99", b"99999999"])
                content = bytearray(re.sub(rb"\d+", number, bytes(content), count=draw.randint(1, 3)))
    return bytes(content)


@dataclasses.dataclass(frozen=True)
class Loader:
    """Something that reads: the name of its file, a good content, and how it is read."""

    file: str
    good: bytes
    read: Callable[[Path], object]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("hostile"), steps=3, save_every=3)
    home.run("run")
    for arguments in (
        ["train-tokenizer", "corpus.txt", "-o", "tok.json", "--vocab-size", "300", "-q"],
        ["prepare", "corpus.txt", "-t", "tok.json", "-o", "data", "-q"],
        ["export", "run", "-o", "hf", "--to", "hf", "-q"],
    ):
        ended = Trial(arguments, home.path, home.env).end()
        assert ended.code == 0, ended
    return home


def loaders(home: Home) -> dict[str, Loader]:
    newest, data = home.newest("run"), home.path / "data"
    text = (home.path / "corpus.txt").read_bytes()[:3000]
    jsonl = b"".join(json.dumps({"text": line, "id": 1}).encode() + b"\n" for line in ("one", "two é", "\u2028"))
    read, weights = Path.read_bytes, (newest / "model.safetensors").read_bytes()[:20000]
    shapes = safetensors_io.tensor_shapes(newest / "model.safetensors")

    def pieces(path: Path) -> object:
        (source,) = find_sources([str(path)], TextOptions())
        return [len(piece.text) for piece in read_pieces(source, TextOptions())]

    def lines(path: Path) -> list[bytes]:
        return path.read_bytes().splitlines(keepends=True)

    def prompts(path: Path) -> object:
        return list(read_items(lines(path), GenerateOptions(), text_or_messages, Report()))

    readers: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
        "run file": ("run.yaml", read(home.path / "run.yaml"), lambda path: yaml_file.load(PretrainConfig, path)),
        "text": ("text.txt", text, pieces),
        "gzip": ("text.txt.gz", gzip.compress(text), pieces),
        "JSONL": ("text.jsonl", jsonl, pieces),
        "tokenizer": ("tokenizer.json", read(home.path / "tok.json"), Tokenizer.load),
        "config": ("config.json", read(newest / "config.json"), lambda path: read_config(path.parent)),
        "weights": ("model.safetensors", weights, lambda path: safetensors_io.read_tensors(path, shapes)),
        "manifest": ("manifest.json", read(newest / "manifest.json"), lambda path: checkpoint.verify(path.parent)),
        "index": ("index.json", read(data / "index.json"), lambda path: shards.TokenArray(path.parent, "train")),
        "prompts": ("prompts.jsonl", RECORD * 3, prompts),
        "records": ("records.jsonl", jsonl, lambda path: list(read_records(lines(path), jsonl=True, field="text"))),
        "ids": ("ids.jsonl", b'{"ids": [1, 2, 3]}\n', lambda path: list(read_ids(lines(path), as_json=True))),
    }
    return {name: Loader(*parts) for name, parts in readers.items()}


def read_damaged(loader: Loader, content: bytes, place: Path) -> None:
    path = place / loader.file
    path.write_bytes(content)
    started = time.monotonic()
    told = ""
    try:
        loader.read(path)
    except (GptcliError, OSError) as error:
        told = str(error)
    assert "\x1b" not in told, told
    assert all(len(line) < 3000 for line in told.splitlines())
    assert time.monotonic() - started < SECONDS, content[:200]
    path.unlink()


def fuzz(home: Home, count: int, place: Path) -> None:
    for name, loader in loaders(home).items():
        draw = random.Random(name)
        for special in SPECIAL:
            read_damaged(loader, special, place)
        for _ in range(count):
            content = damaged(loader.good, draw)
            try:
                read_damaged(loader, content, place)
            except BaseException:
                kept = Path(__file__).parent / "hostile" / f"{draw.randrange(10**6)}-{loader.file}"
                if os.environ.get("KEEP_HOSTILE"):
                    kept.parent.mkdir(exist_ok=True)
                    kept.write_bytes(content)
                raise


def test_damaged_input_in_process_is_an_error_that_is_known(home: Home, tmp_path: Path) -> None:
    fuzz(home, 20, tmp_path)


@pytest.mark.slow
def test_10000_damaged_inputs_in_process_are_errors_that_are_known(home: Home, tmp_path: Path) -> None:
    count = 10_000 // len(loaders(home)) + 1
    fuzz(home, count, tmp_path)
    print(f"\nG6: {len(loaders(home))} loaders x {count}")


HOSTILE = sorted((Path(__file__).parent / "hostile").glob("*"))


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.name)
def test_an_input_that_once_broke_something_is_an_error_now(path: Path, home: Home, tmp_path: Path) -> None:
    (loader,) = [each for each in loaders(home).values() if each.file == path.name.partition("-")[2]]
    read_damaged(loader, path.read_bytes(), tmp_path)


def damage_for_command(home: Home, command: str, number: int, place: Path) -> tuple[list[str], bytes]:
    """Arguments and stdin of a command, one of its inputs damaged."""
    draw = random.Random(f"{command} {number}")
    files = {"corpus": "corpus.txt", "tok": "tok.json", "yaml": "run.yaml", "run": "run", "hf": "hf"}
    names = {name: str(home.path / file) for name, file in files.items()}
    text, given = USES[command]
    used = [name for name in files if f"{{{name}}}" in text]
    if given and (not used or draw.random() < 0.5):
        given = damaged(given, draw)
    elif used:
        name = draw.choice(used)
        target = home.path / files[name]
        if name == "run":
            target = home.newest("run") / draw.choice(["config.json", "tokenizer.json", "model.safetensors"])
            names["run"] = str(place / "run")
            copy_flat(target.parent, place / "run")
            (place / "run" / target.name).write_bytes(damaged(target.read_bytes(), draw))
        elif name == "hf":
            files_there = [path for path in (home.path / "hf").iterdir() if path.is_file()]
            target = draw.choice(sorted(files_there))
            names["hf"] = str(place / "hf")
            copy_flat(home.path / "hf", place / "hf")
            (place / "hf" / target.name).write_bytes(damaged(target.read_bytes(), draw))
        else:
            names[name] = str(place / target.name)
            (place / target.name).write_bytes(damaged(target.read_bytes(), draw))
    arguments = [part.format(**names, out=place / "out", home=home.path) for part in text.split()]
    return [*command.split(), *arguments], given


def copy_flat(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


def run_damaged(home: Home, command: str, number: int, place: Path) -> None:
    place.mkdir()
    arguments, given = damage_for_command(home, command, number, place)
    if "train.steps=3" not in arguments and command in ("pretrain", "finetune"):
        arguments += ["-s", "train.steps=1"]
    ended = Trial(arguments, home.path, home.env, None, given).end()
    assert ended.code in DOCUMENTED, (arguments, ended)
    assert "Traceback" not in ended.err, (arguments, ended)
    lines = ended.err.splitlines()
    if ended.code:
        assert any(re.match(rf"gptcli {command.split()[0]}: (error|warning): .", line) for line in lines), ended
    assert "\x1b" not in ended.err


COMMANDS = [name for name in leaves() if name in USES]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_a_damaged_input_ends_with_a_documented_code(command: str, home: Home, tmp_path: Path) -> None:
    run_damaged(home, command, 0, tmp_path / "0")


@pytest.mark.slow
def test_300_damaged_inputs_of_commands_end_with_a_documented_code(home: Home, tmp_path: Path) -> None:
    count = 300 // len(COMMANDS) + 1
    for command in COMMANDS:
        for number in range(100, 100 + count):
            run_damaged(home, command, number, tmp_path / f"{command}-{number}")
    print(f"\nG6: {len(COMMANDS)} commands x {count}")
