"""Power loss: what was not synced may be gone. Whatever the disk kept, a published checkpoint is there and whole.

The operations of a real run are recorded and replayed on a model of a POSIX file system, in which the content of a
file lasts once it was synced, and a name once its directory was. For every prefix of the record the tree that a power
loss would leave is built in its worst forms, and gptcli must find what it promised.

Every prefix:  pytest -m slow tests/test_power_loss.py
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults import Fault, Home, digests, leftovers, read_log

from gptcli.base.errors import DataError
from gptcli.train.retention import newest_verified

KINDS = ("nothing unsynced", "names without content", "content without names", "some of each")


@dataclass
class Node:
    """A file, a directory or a link; what lasts, and what a process sees."""

    kind: str
    seen: bytearray = field(default_factory=bytearray)
    lasting: bytes = b""
    target: str = ""


class Disk:
    """Replays operations; names are a journal of changes, each lasting once one of its directories was synced."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now: dict[Path, Node] = {root: Node("directory")}
        self.lasting: dict[Path, Node] = dict(self.now)
        self.waiting: list[tuple[set[Path], str, tuple[Any, ...]]] = []  # directories, change, its arguments

    def _change(self, kind: str, *arguments: Any) -> None:
        directories = {path.parent for path in arguments if isinstance(path, Path)}
        apply(self.now, kind, arguments)
        self.waiting.append((directories, kind, arguments))

    def perform(self, name: str, arguments: tuple[Any, ...]) -> None:
        path = next((argument for argument in arguments if isinstance(argument, Path)), None)
        if path is None:
            return
        if self.root != path and self.root not in path.parents:
            return
        if name in ("create", "mkdir"):
            self._change("add", path, Node("file" if name == "create" else "directory"))
        elif name == "open" and path not in self.now:
            self._change("add", path, Node("file"))
        elif name == "write":
            self.now[path].seen += arguments[1]
        elif name == "sync":
            self.now[path].lasting = bytes(self.now[path].seen)
        elif name == "sync directory":
            for change in [change for change in self.waiting if path in change[0]]:
                apply(self.lasting, *change[1:])
                self.waiting.remove(change)
        elif name == "rename":
            self._change("move", *arguments)
        elif name == "exchange":
            self._change("swap", *arguments)
        elif name == "link":
            self._change("add", arguments[1], Node("link", target=arguments[0]))
        elif name in ("unlink", "remove"):
            self._change("drop", path)

    def after_power_loss(self, kind: str, draw: random.Random, target: Path) -> None:
        """Build at `target` what the disk holds."""
        names = dict(self.lasting)
        for _, change, arguments in self.waiting:
            if kind == "names without content" or (kind == "some of each" and draw.random() < 0.5):
                apply(names, change, arguments)
        for path, node in sorted(names.items(), key=lambda item: len(item[0].parts)):
            place = target / path.relative_to(self.root)
            if not place.parent.is_dir() and path != self.root:
                continue  # its directory was lost
            if node.kind == "directory":
                place.mkdir(exist_ok=True)
            elif node.kind == "link":
                place.symlink_to(node.target)
            else:
                content = node.seen if kind == "content without names" else node.lasting
                if kind == "some of each" and len(node.seen) > len(node.lasting):
                    content = node.seen[: draw.randint(len(node.lasting), len(node.seen))]
                place.write_bytes(content)


def apply(names: dict[Path, Node], kind: str, arguments: tuple[Any, ...]) -> None:
    """One change of names; on a disk that lost an earlier one it may find nothing to change."""
    path = arguments[0]
    if kind == "add":
        names[path] = arguments[1]
        return
    if kind == "swap":
        aside = path.parent / f"{path.name} aside"
        for change in ((path, aside), (arguments[1], path), (aside, arguments[1])):
            apply(names, "move", change)
        return
    moved = {old: node for old, node in names.items() if old == path or path in old.parents}
    for old in moved:
        del names[old]
    if kind == "move" and moved:
        target = arguments[1]
        for gone in [old for old in names if old == target or target in old.parents]:
            del names[gone]
        names |= {target / old.relative_to(path): node for old, node in moved.items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("power"))
    home.run("warm")
    home.run("control", "-s", "train.keep_checkpoints=9", fault=Fault(log=str(home.path / "log")))
    return home


def published_step(done: Iterable[tuple[str, tuple[Any, ...]]]) -> int:
    """The step of the last checkpoint whose directory had been renamed and its parent synced."""
    renamed = step = 0
    for name, arguments in done:
        if name == "rename" and arguments[1].name.startswith("step-"):
            renamed = int(arguments[1].name.removeprefix("step-"))
        elif name == "sync directory" and arguments[0].name == "checkpoints":
            step = renamed
    return step


def check_prefix(home: Home, log: list[Any], count: int, kind: str, place: Path) -> int:
    """-> the step that a run would go on from."""
    disk = Disk(home.path)
    for path in (home.path / "control", *home.path.iterdir()):
        disk.lasting.pop(path, None)
    for operation in log[:count]:
        disk.perform(*operation)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    disk.after_power_loss(kind, random.Random(count), place)
    run, promised = place / "control", published_step(log[:count])
    try:
        found = newest_verified(run, lambda _: None)
    except DataError:  # a checkpoint whose rename lasted and whose content did not must never be the only one
        assert promised == 0
        raise
    step = 0 if found is None else int(found.name.removeprefix("step-"))
    assert step >= promised, (count, kind)
    if found is not None:
        assert digests(found) == digests(home.path / "control" / "checkpoints" / found.name)
    return step


def test_some_prefixes_leave_a_whole_checkpoint(home: Home, tmp_path: Path) -> None:
    log = read_log(home.path / "log")
    for count in random.Random(3).sample(range(len(log) + 1), 30):
        for kind in KINDS:
            check_prefix(home, log, count, kind, tmp_path / "disk")


def test_a_run_resumed_after_power_loss_ends_like_the_unbroken_one(home: Home) -> None:
    log = read_log(home.path / "log")
    for number, count in enumerate(random.Random(4).sample(range(len(log) // 2, len(log)), 3)):
        run = f"lost-{number}"
        check_prefix(home, log, count, "some of each", home.path / "disk")
        shutil.move(home.path / "disk" / "control", home.path / run)
        home.run(run, "--resume", "-s", "train.keep_checkpoints=9")
        assert digests(home.newest(run)) == digests(home.newest("control"))
        assert leftovers(home.path / run) == []


@pytest.mark.slow
def test_every_prefix_leaves_a_whole_checkpoint(home: Home, tmp_path: Path) -> None:
    log = read_log(home.path / "log")
    for count in range(len(log) + 1):
        for kind in KINDS:
            check_prefix(home, log, count, kind, tmp_path / "disk")
    print(f"\nG3: {len(log) + 1} prefixes x {len(KINDS)} kinds of loss")


def test_the_model_of_the_disk_loses_what_was_not_synced(tmp_path: Path) -> None:
    root, place = Path("/root-of-model"), tmp_path / "disk"
    disk = Disk(root)
    for operation in (
        ("create", (root / "a",)),
        ("write", (root / "a", b"1234")),
        ("sync", (root / "a",)),
        ("write", (root / "a", b"5678")),
        ("sync directory", (root,)),
        ("rename", (root / "a", root / "b")),
    ):
        disk.perform(*operation)
    for kind, wanted in zip(KINDS, ({"a": b"1234"}, {"b": b"1234"}, {"a": b"12345678"}), strict=False):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        disk.after_power_loss(kind, random.Random(1), place)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == wanted
