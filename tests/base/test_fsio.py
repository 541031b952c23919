"""Files and directories that appear whole or not at all, and manifests that find any damage."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from holders import HOLD, names, start
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.fsio import operations

FEW = settings(max_examples=80, deadline=None)


# ----------------------------------------------------------------------------------------------------------- files


@FEW
@given(old=st.none() | st.binary(max_size=100), new=st.binary(max_size=100), fails=st.booleans())
def test_a_replaced_file_is_the_old_one_or_the_new_one_and_nothing_else_is_left(
    old: bytes | None, new: bytes, fails: bool
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        if old is not None:
            path.write_bytes(old)
        try:
            with fsio.replacing(path) as file:
                file.write(new)
                assert (path.read_bytes() if path.exists() else None) == old
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        wanted = old if fails else new
        assert (path.read_bytes() if path.exists() else None) == wanted
        assert names(Path(directory)) == ({"file"} if wanted is not None else set())


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        fsio.write_file(tmp_path / "file", "text")
        with fsio.new_directory(tmp_path / "directory") as directory:
            (directory / "file").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "directory").stat().st_mode & 0o777 == 0o750


def test_a_writer_killed_in_the_middle_leaves_the_old_file_and_the_next_one_sweeps_what_it_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    code = """
import sys
from pathlib import Path
from gptcli.base import fsio
with fsio.replacing(Path(sys.argv[1])) as file, fsio.new_directory(Path(sys.argv[1] + "s")) as directory:
    file.write(b"new")
    (directory / "part").write_text("new")
    print("ready", flush=True)
    sys.stdin.read()
"""
    process = start(code, path)
    process.kill()
    process.communicate()
    assert path.read_text() == "old"
    assert not (tmp_path / "files").exists()
    assert len(names(tmp_path)) == 3
    fsio.sweep(tmp_path)
    assert names(tmp_path) == {"file"}


def test_a_full_disk_is_one_line_and_keeps_the_old_output(tmp_path: Path) -> None:
    text, output = tmp_path / "corpus.txt", tmp_path / "tokenizer.json"
    text.write_text("the old harbour and the new bridge across the river\n" * 300)
    output.write_text("old")
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from gptcli.cli.main import main
sys.argv[1:] = ["train-tokenizer", sys.argv[1], "-o", sys.argv[2], "--vocab-size", "300", "--force", "--quiet"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code, str(text), str(output)], capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert output.read_text() == "old"
    assert names(tmp_path) == {"corpus.txt", "tokenizer.json"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_error_of_the_last_flush_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def on_full_disk(name: str, arguments: tuple[Any, ...], act: Callable[[], Any]) -> Any:  # noqa: ARG001
        result = act()
        if name == "create":
            os.dup2(os.open("/dev/full", os.O_WRONLY), result[0])
        return result

    monkeypatch.setattr(operations, "perform", on_full_disk)
    with pytest.raises(OSError, match="No space left"):
        fsio.write_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_json_without_sense_is_data_that_is_damaged(tmp_path: Path) -> None:
    for content in (b"", b"{", b"\xff\xfe", b"[" * 200_000):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(DataError, match="not JSON"):
            fsio.read_json(tmp_path / "file")


# ------------------------------------------------------------------------------------------------------ directories


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("fsio") / "whole"
    with fsio.new_directory(directory) as made:
        (made / "weights").write_bytes(bytes(range(256)) * 3)
        (made / "config.json").write_text('{"layers": 2}')
        (made / "empty").touch()
    fsio.verify(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_single_flipped_bit_is_found(whole: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file, content in whole.items():
            (directory / file).write_bytes(content)
        victim = data.draw(st.sampled_from(sorted(file for file, content in whole.items() if content)))
        content = bytearray(whole[victim])
        position = data.draw(st.integers(0, 8 * len(content) - 1))
        content[position // 8] ^= 1 << position % 8
        (directory / victim).write_bytes(content)
        with pytest.raises(DataError):
            fsio.verify(directory)


@FEW
@given(data=st.data())
def test_any_cut_growth_or_removal_is_found_and_named(whole: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file, content in whole.items():
            (directory / file).write_bytes(content)
        victim = data.draw(st.sampled_from(sorted(set(whole) - {fsio.MANIFEST})))
        size = data.draw(st.none() | st.integers(0, len(whole[victim]) + 5).filter(lambda n: n != len(whole[victim])))
        if size is None:
            (directory / victim).unlink()
        else:
            os.truncate(directory / victim, size)
        with pytest.raises(DataError, match=victim) as caught:
            fsio.verify(directory)
        assert ("missing" if size is None else f"has {size} bytes, want {len(whole[victim])}") in str(caught.value)


def test_a_directory_without_a_sound_manifest_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not complete"):
        fsio.verify(tmp_path)
    for document in ([], {}, {"files": []}, {"files": {"../outside": {}}}, {"files": {"file": 1}}):
        (tmp_path / fsio.MANIFEST).write_text(json.dumps(document))
        with pytest.raises(DataError):
            fsio.verify(tmp_path)


def test_a_new_directory_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with fsio.new_directory(path) as directory:
        (directory / "first").touch()
    with suppress(KeyboardInterrupt), fsio.new_directory(path) as directory:
        (directory / "second").touch()
        raise KeyboardInterrupt
    assert names(path) == {"first", fsio.MANIFEST}
    with fsio.new_directory(path) as directory:
        (directory / "third").touch()
    assert names(path) == {"third", fsio.MANIFEST}
    fsio.verify(path)
    assert names(tmp_path) == {"out"}


def test_a_published_directory_does_not_keep_its_lock(tmp_path: Path) -> None:
    with fsio.locked(tmp_path / "partial"):
        (tmp_path / "partial" / "file").touch()
        fsio.publish(tmp_path / "partial", tmp_path / "out")
    assert names(tmp_path / "out") == {"file", fsio.MANIFEST}
    fsio.verify(tmp_path / "out")


def test_sweeping_removes_what_was_being_written_or_deleted_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / ".tmp-file-0a1b2c3d").touch()
    (tmp_path / ".tmp-directory-0a1b2c3d" / "below").mkdir(parents=True)
    (tmp_path / ".trash-file-1-2" / "below").mkdir(parents=True)
    (tmp_path / ".tmp-link-123").symlink_to(tmp_path / "kept")
    (tmp_path / ".tmp-dangling-123").symlink_to("nowhere")
    (tmp_path / ".old-given-123").mkdir()
    others = {"kept", ".hidden", ".tmp-file", ".tmp-0a1b2c3d", ".trash-1-2", ".old-1"}
    for name in others - {"kept", ".hidden"}:
        (tmp_path / name).touch()
    fsio.sweep(tmp_path, "directory|link")
    assert not names(tmp_path) & {".tmp-directory-0a1b2c3d", ".tmp-link-123"}
    assert names(tmp_path) > others
    fsio.sweep(tmp_path)
    assert names(tmp_path) == others | {"given"}


def test_writing_an_output_removes_nothing_that_only_begins_as_what_its_dead_writers_leave(tmp_path: Path) -> None:
    mine = {".tmp-out-notes", ".tmp-out.bak-0a1b2c3d", ".trash-out-notes", ".old-out-notes"}
    left = {".tmp-out-0a1b2c3d", ".trash-out-1-2"}
    for name in mine | left:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9, 1e9))
    fsio.write_file(tmp_path / "out", "file")
    assert names(tmp_path) == mine | {"out", ".trash-out-1-2"}
    fsio.delete(tmp_path / "out")
    with fsio.new_directory(tmp_path / "out") as directory:
        (directory / "file").touch()
    assert names(tmp_path) == mine | {"out"}


def test_deleting_a_link_leaves_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").touch()
    (tmp_path / "link").symlink_to("target")
    fsio.delete(tmp_path / "link")
    assert names(tmp_path) == {"target"}
    fsio.delete(tmp_path / "target")
    assert names(tmp_path) == set()


def test_only_what_is_old_and_not_held_is_abandoned(tmp_path: Path) -> None:
    for name in ("old", "young", "held", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "old-file").touch()
    process = start(HOLD, tmp_path / "held")
    for name in ("old", "held", "other", "old-file"):
        os.utime(tmp_path / name, (1e9, 1e9))
    for pattern in ("[!o]*", "old*"):
        fsio.sweep_abandoned(tmp_path.glob(pattern), seconds=60)
    process.communicate()
    assert names(tmp_path) == {"young", "held", "other"}
    fsio.sweep_abandoned([tmp_path / "missing"], seconds=0)


def test_a_link_changes_its_target_without_a_moment_of_absence(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "latest"
    fsio.point(link, "one")
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.add((link / "file").read_text() if link.is_symlink() else "absent")

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(200):
        fsio.point(link, ("two", "one")[number % 2])
    done.set()
    watcher.join()
    assert seen <= {"one", "two"}
    assert os.readlink(link) == "one"
    assert names(tmp_path) == {"one", "two", "latest"}
