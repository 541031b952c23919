"""--force replaces what gptcli made and nothing else; an output that is replaced is the old one or the new one, whole,
at every operation and every error.

Every operation:  pytest -m slow tests/reliability/test_replacing.py
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from faults import Fault, Home, Lacks, Trial, leftovers, read_log

from gptcli.base import fsio
from gptcli.base.errors import RefusedError

ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT", "EACCES")
FAILING = ("create", "write", "sync", "rename", "exchange", "mkdir", "open", "link")
NO_EXCHANGE = Lacks(("exchange",), "EINVAL")
COMMANDS = {
    "export": ["export", "run", "-o", "out", "--to", "hf"],
    "import": ["import", "hf", "-o", "out"],
    "merge": ["merge", "adapter", "-o", "out"],
    "prepare": ["prepare", "corpus.txt", "-t", "tok.json", "-o", "out"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A base, an adapter of it, an export and a tokenizer, for every command that makes a directory."""
    home = Home(tmp_path_factory.mktemp("replacing"), task="chat")
    shutil.copytree(home.path / "base", home.path / "run", symlinks=True)
    home.run("adapter", "-s", "lora.rank=2", "-s", "train.epochs=1")
    for arguments in (
        ["export", "base", "-o", "hf", "--to", "hf", "-q"],
        ["train-tokenizer", "corpus.txt", "-o", "tok.json", "--vocab-size", "290", "-q"],
    ):
        ended = Trial(arguments, home.path, home.env).end()
        assert ended.code == 0, ended
    return home


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != fsio.LOCK}


def force(home: Home, command: str, fault: Fault | None = None, *more: str) -> int:
    return Trial([*COMMANDS[command], "--force", "-q", *more], home.path, home.env, fault).end().code


def make_old(home: Home) -> dict[str, bytes]:
    """Put an output of another content in place."""
    shutil.rmtree(home.path / "out", ignore_errors=True)
    with fsio.new_directory(home.path / "out") as directory:
        (directory / "old").write_text("old")
        (directory / "index.json").write_text("{}")  # what prepare wants to see of its own
    return content(home.path / "out")


# ------------------------------------------------------------------------------------------------- what is foreign

FOREIGN: dict[str, dict[str, str]] = {
    "a web app": {"manifest.json": '{"name": "app", "icons": []}', "index.html": "<p>", "src/notes.txt": "notes"},
    "a site": {"index.json": "{}", "thesis.md": "years of work"},
    "files in a manifest of another": {"manifest.json": '{"files": {"notes.txt": {}}}', "notes.txt": "notes"},
    "a manifest of another with names alone": {"manifest.json": '{"files": ["notes.txt"]}', "notes.txt": "notes"},
    "a manifest that is no JSON": {"manifest.json": "{", "notes.txt": "notes"},
    "one file": {"notes.txt": "notes"},
}


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_force_refuses_a_directory_that_gptcli_did_not_make(command: str, home: Home) -> None:
    for name, files in FOREIGN.items():
        shutil.rmtree(home.path / "out", ignore_errors=True)
        write(home.path / "out", files)
        before = tree(home.path / "out")
        ended = Trial([*COMMANDS[command], "--force"], home.path, home.env).end()
        assert ended.code == 5, (name, ended)
        assert len([line for line in ended.err.splitlines() if "error" in line]) == 1
        assert tree(home.path / "out") == before, name


@pytest.mark.parametrize("added", ["notes.txt", ".git/config", "sub/weights.bin", "lock"])
def test_force_refuses_an_output_of_its_own_to_which_someone_added_something(added: str, home: Home) -> None:
    shutil.rmtree(home.path / "out", ignore_errors=True)
    assert force(home, "export") == 0
    write(home.path / "out", {added: "mine"})
    before = tree(home.path / "out")
    assert force(home, "export") == 5
    assert tree(home.path / "out") == before
    if added != "lock":
        assert added.split("/")[0] in str(fsio.foreign(home.path / "out"))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_of_an_older_gptcli_without_the_mark_is_replaced_while_it_is_whole(command: str, home: Home) -> None:
    out = home.path / "out"
    shutil.rmtree(out, ignore_errors=True)
    assert force(home, command) == 0
    document = json.loads((out / fsio.MANIFEST).read_text())
    (out / fsio.MANIFEST).write_text(json.dumps({"files": document["files"]}))
    assert fsio.foreign(out) is None
    assert force(home, command) == 0
    assert "format" in json.loads((out / fsio.MANIFEST).read_text())
    (out / fsio.MANIFEST).write_text(json.dumps({"files": document["files"]}))
    changed = out / sorted(document["files"])[0]
    changed.write_bytes(changed.read_bytes() + b" ")
    before = tree(out)
    assert force(home, command) == 5
    assert tree(out) == before


def test_a_manifest_of_that_old_form_whose_files_do_not_name_gptcli_is_foreign(tmp_path: Path) -> None:
    with fsio.new_directory(tmp_path / "out") as directory:
        (directory / "notes.txt").write_text("notes")
    manifest = tmp_path / "out" / fsio.MANIFEST
    manifest.write_text(json.dumps({"files": json.loads(manifest.read_text())["files"]}))
    with pytest.raises(RefusedError, match="none of its files names gptcli"):
        fsio.check_replaceable(tmp_path / "out", force=True)


def test_a_run_that_begins_again_deletes_its_own_checkpoints_alone(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=2)
    home.run("run")
    foreign = {"checkpoints/epoch=1.ckpt": "another's", "checkpoints/step-1/weights": "another's", "notes.txt": "mine"}
    write(tmp_path / "run", foreign)
    home.run("run", "--force", "-s", "train.steps=3")
    assert (tmp_path / "run" / "latest").resolve().name == "step-000003"
    assert {name: (tmp_path / "run" / name).read_text() for name in foreign} == foreign
    write(tmp_path / "run", {"checkpoints/step-000009/weights.bin": "another's"})
    ended = home.run("run", "--force", code=5)
    assert "step-000009: holds no manifest.json of gptcli's" in ended.err
    assert (tmp_path / "run" / "checkpoints" / "step-000009" / "weights.bin").read_text() == "another's"
    assert (tmp_path / "run" / "checkpoints" / "step-000003" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["latest", "best", "metrics.jsonl", "run.yaml"])
def test_a_run_does_not_take_the_place_of_a_file_that_gptcli_did_not_make(name: str, tmp_path: Path) -> None:
    home = Home(tmp_path, steps=1)
    write(tmp_path / "run", {name: '{"epoch": 1}\n'})
    for more in ([], ["--force"], ["--resume"]):
        ended = home.start("run", *more).end()
        assert ended.code == 5 or (name, more) == ("metrics.jsonl", ["--resume"]), (more, ended)
        assert (tmp_path / "run" / name).read_text() == '{"epoch": 1}\n' or ended.code == 0
        if ended.code == 5:
            assert f"run: holds {name}, which gptcli did not make" in ended.err


def test_a_run_file_that_a_user_keeps_in_the_directory_of_the_run_stays_as_he_wrote_it(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=1)
    own = tmp_path / "run" / "run.yaml"
    write(tmp_path / "run", {"run.yaml": f"# mine\n{(tmp_path / 'run.yaml').read_text()}"})
    mine = own.read_bytes()
    ended = Trial(["pretrain", "run/run.yaml"], home.path, home.env).end()
    assert ended.code == 5
    assert "run: holds run.yaml, which gptcli did not make" in ended.err
    assert own.read_bytes() == mine
    own.unlink()
    home.run("run")
    complete = own.read_bytes()
    own.write_bytes(b"# mine\n" + complete)
    home.run("run", "--force", code=5)
    Trial(["pretrain", "run/run.yaml", "--resume"], home.path, home.env).end()
    assert own.read_bytes() == b"# mine\n" + complete
    own.write_bytes(complete)
    home.run("run", "--force", "-s", "train.steps=2")
    assert own.read_bytes() == complete.replace(b"steps: 1\n", b"steps: 2\n", 1)


def test_a_run_sweeps_what_runs_left_and_only_once_the_directory_is_known_to_be_its_own(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=1)
    run = tmp_path / "run"
    mine = {
        ".tmp-notes": "mine",
        ".tmp-notes-20260101": "mine",
        ".trash-notes-1-1/notes": "mine",
        "checkpoints/.old-notes-1/notes": "mine",
    }
    left = {".tmp-run.yaml-0a1b2c3d": "left", "checkpoints/.tmp-step-000001-0a1b2c3d/config.json": "left"}
    write(run, {**mine, **left, "metrics.jsonl": "1"})
    home.run("run", code=5)
    assert all((run / name).is_file() for name in (*mine, *left))
    (run / "metrics.jsonl").unlink()
    home.run("run")
    assert {name: (run / name).read_text() for name in mine} == mine
    assert not any((run / name).exists() for name in left)


# ------------------------------------------------------------------------------------------ old or new, never neither


def operations_of(home: Home, command: str, lacks: Lacks | None) -> list[str]:
    log = home.path / "log"
    log.unlink(missing_ok=True)
    make_old(home)
    assert force(home, command, Fault(log=str(log), lacks=lacks)) == 0
    return [name for name, _ in read_log(log)]


def crash(home: Home, command: str, number: int, how: str, new: dict[str, bytes], lacks: Lacks | None) -> None:
    """End the process at an operation. Without the swap of names the old output may be hidden: the next writer of the
    same output, though it does not want to replace it, gives it back."""
    old = make_old(home)
    assert force(home, command, Fault(number, how, lacks=lacks)) == 137
    if lacks is not None and not (home.path / "out").exists():
        refused = Trial([*COMMANDS[command], "-q"], home.path, home.env).end()
        assert refused.code == 5, (number, how, refused)
        assert content(home.path / "out") == old, (number, how)
    assert content(home.path / "out") in (old, new), (number, how)
    assert force(home, command) == 0
    assert content(home.path / "out") == new, (number, how)
    assert leftovers(home.path) == [], (number, how)


def fail(home: Home, command: str, number: int, error: str, new: dict[str, bytes], lacks: Lacks | None) -> None:
    """Let an operation fail: the old output is there or the new one, at once."""
    old = make_old(home)
    code = force(home, command, Fault(number, error, lacks=lacks))
    assert content(home.path / "out") == new if code == 0 else content(home.path / "out") in (old, new), (number, error)
    assert force(home, command) == 0
    assert content(home.path / "out") == new
    assert leftovers(home.path) == [], (number, error)


@pytest.mark.parametrize("lacks", [None, NO_EXCHANGE], ids=["swapped", "renamed"])
@pytest.mark.parametrize("command", COMMANDS)
def test_at_the_operations_around_the_swap_the_output_is_the_old_or_the_new(
    command: str, lacks: Lacks | None, home: Home
) -> None:
    names = operations_of(home, command, lacks)
    new = content(home.path / "out")
    last = len(names) - 1 - names[::-1].index("exchange" if lacks is None else "rename")
    moments = range(max(1, last - 1), min(len(names), last + 4) + 1)
    for number in moments if command == "export" else [random.Random(command).choice(moments)]:
        for how in ("before", "after"):
            crash(home, command, number, how, new, lacks)
        if names[number - 1] in FAILING:
            fail(home, command, number, ERRORS[number % len(ERRORS)], new, lacks)


@pytest.mark.slow
@pytest.mark.parametrize("lacks", [None, NO_EXCHANGE], ids=["swapped", "renamed"])
@pytest.mark.parametrize("command", COMMANDS)
def test_at_every_operation_and_error_the_output_is_the_old_or_the_new(
    command: str, lacks: Lacks | None, home: Home
) -> None:
    names = operations_of(home, command, lacks)
    new = content(home.path / "out")
    trials = 0
    for number, name in enumerate(names, 1):
        for how in ("before", "after"):
            crash(home, command, number, how, new, lacks)
            trials += 1
        for error in ERRORS if name in FAILING else ():
            fail(home, command, number, error, new, lacks)
            trials += 1
    print(f"\nreplacing, {command}: {trials} trials at {len(names)} operations")
