"""A corpus that is prepared in parts is, byte for byte, that of one process, whatever is killed on the way."""

import gzip
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, RunCli, english, environment
from faults import Fault, Trial, leftovers, read_log
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gptcli.api.prepare import merge_parts, prepare, prepare_part
from gptcli.base.errors import GptcliError
from gptcli.base.report import Report
from gptcli.config.data import DataConfig
from gptcli.data import blocks, encode, split, text
from gptcli.data.tokenizer import Tokenizer, learn_merges

SHARD_TOKENS = 400


@pytest.fixture(scope="module")
def learnt() -> Tokenizer:
    return learn_merges(iter([english(60)]), vocab_size=300, pattern="gpt2")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and batches of a few hundred bytes."""
    for module in (blocks, split, text):
        monkeypatch.setattr(module, "PIECE_BYTES", 200)
    monkeypatch.setattr(encode, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(encode, "PIECE_CHARACTERS", 70)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def write_files(directory: Path, kinds: list[str], seed: int) -> None:
    """Files of text, JSON lines with blank lines and bad rows, and compressed ones."""
    draw = random.Random(seed)
    for number, kind in enumerate(kinds):
        lines = english(draw.randint(1, 25), seed + number).splitlines(keepends=True)
        if "jsonl" in kind:
            lines = [json.dumps({"text": line}) + "\n" for line in lines]
            for extra in ("\n", '{"text": null}\n', '{"text": ""}\n'):
                lines.insert(draw.randint(1, len(lines)), extra)
        made = "" if kind == "empty" else "".join(lines)
        path = directory / f"{number}.{kind.replace('empty', 'txt')}"
        path.write_bytes(gzip.compress(made.encode()) if kind.endswith("gz") else made.encode())


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    kinds=st.lists(st.sampled_from(["txt", "jsonl", "txt.gz", "jsonl.gz", "empty"]), min_size=1, max_size=5),
    parts=st.integers(1, 6),
    fraction=st.sampled_from([0.0, 0.05, 0.3, 0.62]),
    how=st.sampled_from(["tail", "document"]),
    separator=st.sampled_from([None, "line"]),
    held_out=st.booleans(),
    seed=st.integers(0, 1000),
)
@pytest.mark.usefixtures("small")
def test_parts_are_merged_to_the_bytes_of_one_process(
    learnt: Tokenizer,
    kinds: list[str],
    parts: int,
    fraction: float,
    how: Any,
    separator: Any,
    held_out: bool,
    seed: int,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "corpus").mkdir()
        write_files(root / "corpus", kinds, seed)
        (root / "held.txt").write_bytes(
            next((root / "corpus").iterdir()).read_bytes() if seed % 3 == 0 else b"held out"
        )
        data = DataConfig(
            train=(str(root / "corpus"),),
            validation=(str(root / "held.txt"),) if held_out else (),
            validation_fraction=fraction,
            validation_split=how,
            separator=separator,
            on_bad_row="skip",
        )
        rules: dict[str, Any] = {"report": Report(), "shard_tokens": SHARD_TOKENS}
        names = [root / f"part-{number}" for number in range(1, parts + 1)]

        def in_parts() -> None:
            for number, path in enumerate(names, 1):
                prepare_part(data, learnt, path, number, parts, **rules)
            merge_parts(random.Random(seed).sample(names, parts), root / "merged", **rules)

        wanted = outcome(lambda: prepare(data, learnt, root / "one", **rules), root / "one")
        assert outcome(in_parts, root / "merged") == wanted


def outcome(make: Callable[[], object], output: Path) -> dict[str, bytes] | type[GptcliError]:
    """What was made, or the kind of error."""
    try:
        make()
    except GptcliError as error:
        return type(error)
    return content(output)


def prepared_in_parts(run_cli: RunCli, root: Path, tokenizer: Path, parts: int, *more: object) -> list[Result]:
    command = ("prepare", "corpus", "-t", tokenizer, *more)
    return [run_cli(*command, "--part", f"{k}/{parts}", "-o", f"parts/{k}", cwd=root) for k in range(1, parts + 1)]


@pytest.fixture
def corpus_directory(tmp_path: Path) -> Path:
    """Made-up text in a directory of its own, in `tmp_path`."""
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        (tmp_path / "corpus" / f"{number}.txt").write_text(english(100, number))
    return tmp_path


def test_the_command_in_four_parts_is_the_command_in_one(
    run_cli: RunCli, corpus_directory: Path, tokenizer: Path
) -> None:
    one = run_cli("prepare", "corpus", "-t", tokenizer, "-o", "one", cwd=corpus_directory)
    assert [done.code for done in prepared_in_parts(run_cli, corpus_directory, tokenizer, 4)] == [0] * 4
    again = prepared_in_parts(run_cli, corpus_directory, tokenizer, 4)  # finds what is there
    assert all(done.code == 0 and "is there, made of the same inputs" in done.err for done in again)
    other = run_cli("prepare", "corpus/1.txt", "-t", tokenizer, "--part", "1/4", "-o", "parts/1", cwd=corpus_directory)
    other.error(5, "prepare", "--force")
    parts = [f"parts/{k}" for k in (3, 1, 4, 2)]
    merged = run_cli("prepare", "--merge", *parts, "-o", "merged", cwd=corpus_directory)
    assert (merged.code, merged.out) == (0, one.out), merged.err
    assert content(corpus_directory / "merged") == content(corpus_directory / "one")
    assert "--force" in run_cli("prepare", "--merge", *parts, "-o", "merged", cwd=corpus_directory).err


def test_a_merge_refuses_by_name_what_is_missing_doubled_foreign_or_damaged(
    run_cli: RunCli, corpus_directory: Path, tokenizer: Path
) -> None:
    def merge(*names: str, code: int = 3) -> list[str]:
        done = run_cli("prepare", "--merge", *(f"parts/{name}" for name in names), "-o", "merged", cwd=corpus_directory)
        assert not (corpus_directory / "merged").exists()
        return done.error(code, "prepare")

    def part(name: str, *options: object, given: str = "corpus") -> None:
        done = run_cli("prepare", given, *options, "-o", f"parts/{name}", cwd=corpus_directory)
        assert done.code == 0, done.err

    run_cli("train-tokenizer", "corpus", "-o", "other.json", "--vocab-size", 280, cwd=corpus_directory)
    prepared_in_parts(run_cli, corpus_directory, tokenizer, 4)
    part("number", "-t", tokenizer, "--part", "3/5")
    part("tokenizer", "-t", "other.json", "--part", "3/4")
    part("settings", "-t", tokenizer, "--part", "3/4", "--validation-fraction", "0.2")
    part("inputs", "-t", tokenizer, "--part", "3/4", given="corpus/0.txt")
    assert ["part 3/4 is missing" in line for line in merge("1", "2", "4")] == [True]
    assert "parts/3: is part 3/4, and so is parts/3" in merge("1", "3", "2", "4", "3")[0]
    for name, reason in (
        ("number", "another number of parts"),
        ("tokenizer", "another tokenizer"),
        ("settings", "other settings"),
        ("inputs", "another list of inputs"),
    ):
        assert any(line.startswith(f"gptcli prepare: error: parts/{name}: ") and reason in line
                   for line in merge(name, "1", "2", "4"))  # fmt: skip
    assert "parts/none: is no part" in merge("none", "1")[0]
    assert "merged" not in "".join(merge("tokenizer", "1", "2", "4"))
    shard = corpus_directory / "parts" / "2" / "part-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    assert "parts/2/part-00000.bin: has" in merge("1", "2", "3", "4")[0]


def test_a_file_that_changes_between_parts_or_before_the_merge_is_told(
    run_cli: RunCli, corpus_directory: Path, tokenizer: Path
) -> None:
    one, *others = sorted((corpus_directory / "corpus").iterdir())
    for path in others:
        path.unlink()
    text_of_it = one.read_text()
    for number in (1, 2):
        one.write_text(text_of_it if number == 1 else text_of_it.swapcase())
        command = ("prepare", "corpus", "-t", tokenizer, "--part", f"{number}/2", "-o", f"parts/{number}")
        assert run_cli(*command, cwd=corpus_directory).code == 0
    merge = ("prepare", "--merge", "parts/1", "parts/2", "-o", "merged")
    assert "0.txt: changed between parts/1 and parts/2" in run_cli(*merge, cwd=corpus_directory).error(3, "prepare")[0]
    assert run_cli(*command, "--force", cwd=corpus_directory).code == 0
    command = ("prepare", "corpus", "-t", tokenizer, "--part", "1/2", "-o", "parts/1")
    assert run_cli(*command, cwd=corpus_directory).code == 5
    assert run_cli(*command, "--force", cwd=corpus_directory).code == 0
    one.write_text(text_of_it)
    assert "has changed since its part was made" in run_cli(*merge, cwd=corpus_directory).error(3, "prepare")[0]
    one.write_text(text_of_it.swapcase())  # the same text at another time
    assert run_cli(*merge, cwd=corpus_directory).code == 0


def test_options_that_do_not_go_together_are_refused(run_cli: RunCli, corpus_directory: Path, tokenizer: Path) -> None:
    merge = ("prepare", "--merge", "parts/1", "-o", "merged")
    run_cli(*merge, "-t", tokenizer, cwd=corpus_directory).error(2, "prepare", "--tokenizer is decided by the parts")
    run_cli(*merge, "--part", "1/2", cwd=corpus_directory).error(2, "prepare", "--part is decided by the parts")
    part = ("prepare", "-t", tokenizer, "-o", "out", "--part")
    for wrong in ("0/4", "5/4", "1", "a/b", "-1/2"):
        run_cli(*part, wrong, "corpus", cwd=corpus_directory).error(2, "prepare", "is no part; write 1/4 to 4/4")
    run_cli(*part, "1/2", "-", input="text", cwd=corpus_directory).error(2, "prepare", "is a stream")


SLOW = """
import functools, sys, time
from gptcli.api import prepare
from gptcli.base.fsio import operations
from gptcli.cli.main import main
from gptcli.data import encode
perform = operations.perform
def slowly(*given):
    time.sleep(0.01)
    return perform(*given)
operations.perform = slowly
encode.BATCH_CHARACTERS = 1000
for name in ("prepare", "prepare_part", "merge_parts"):
    setattr(prepare, name, functools.partial(getattr(prepare, name), shard_tokens=700))
main()
"""


def start(root: Path, *command: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", SLOW, *command, "-q"], cwd=root, stdout=subprocess.DEVNULL)


def kill_at_work(draw: random.Random, partial: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Kill a process at a random moment after it has begun; return whether that hit it."""
    while process.poll() is None and not partial.exists():
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_all(root: Path, tokenizer: Path, kills: int, seed: int) -> int:
    """Prepare in two parts at once and merge, each killed so often; return the kills that hit."""
    draw, hit = random.Random(seed), 0
    parts = [["prepare", "corpus", "-t", str(tokenizer), "--part", f"{k}/2", "-o", f"parts/{k}"] for k in (1, 2)]
    for commands, place in (
        (parts, root / "parts"),
        ([["prepare", "--merge", "parts/1", "parts/2", "-o", "merged"]], root),
    ):
        for _ in range(kills):
            started = [
                (start(root, *command), place / f".partial-{command[-1].split('/')[-1]}") for command in commands
            ]
            hit += sum([kill_at_work(draw, partial, process) for process, partial in started])
        for command in commands:
            if not (root / command[-1]).exists() or place != root:
                assert start(root, *command).wait() == 0
    return hit


def test_a_part_and_a_merge_that_crash_at_any_of_some_operations_go_on(
    run_cli: RunCli, corpus_directory: Path, tokenizer: Path, session_cache: Path
) -> None:
    run_cli("prepare", "corpus", "-t", tokenizer, "-o", "one", cwd=corpus_directory)
    prepared_in_parts(run_cli, corpus_directory, tokenizer, 2)
    part = ["prepare", "corpus", "-t", str(tokenizer), "--part", "2/2", "-o", "parts/2", "-q"]
    merge = ["prepare", "--merge", "parts/1", "parts/2", "-o", "merged", "-q"]
    draw, env = random.Random(5), environment(session_cache)
    for command in (part, merge):
        output, log = corpus_directory / command[-2], corpus_directory / "log"
        shutil.rmtree(output, ignore_errors=True)
        assert Trial(command, corpus_directory, env, Fault(log=str(log))).end().code == 0
        for number in draw.sample(range(1, len(read_log(log)) + 1), 4):
            shutil.rmtree(output)
            crashed = Trial(command, corpus_directory, env, Fault(number, draw.choice(["before", "after"]))).end()
            assert crashed.code == 137
            again = Trial(command, corpus_directory, env).end()
            assert again.code == 0 or (again.code == 5 and output.exists()), again.err
        log.unlink()
        assert leftovers(corpus_directory) == []
    assert content(corpus_directory / "merged") == content(corpus_directory / "one")


@pytest.mark.slow
def test_many_kills_of_parts_and_merges(corpus_directory: Path, tokenizer: Path) -> None:
    assert start(corpus_directory, "prepare", "corpus", "-t", str(tokenizer), "-o", "one").wait() == 0
    hit = 0
    for seed in range(4):
        hit += kill_all(corpus_directory, tokenizer, 3, seed)
        assert content(corpus_directory / "merged") == content(corpus_directory / "one")
        for name in ("parts", "merged"):
            shutil.rmtree(corpus_directory / name)
        assert {path.name for path in corpus_directory.iterdir()} == {"corpus", "one"}
    print(f"\nparts and merges: {hit} kills")
    assert hit >= 24
