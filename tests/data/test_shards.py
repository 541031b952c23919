"""Token shards: what is written is what is read, also after a kill."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_texts import SOME, english, records

from gptcli.api.prepare import prepare
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError, RefusedError
from gptcli.base.report import Report
from gptcli.config.data import DataConfig
from gptcli.data import encode as encode_module
from gptcli.data.corpus import read_corpus, survey
from gptcli.data.shards import SPLITS, SplitWriter, TokenArray, read_index, token_dtype, write_index
from gptcli.data.tokenizer import Tokenizer, learn_merges


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges(iter([english(1, 2000)]), vocab_size=300, pattern="gpt2")


def write(directory: Path, documents: list[list[int]], *, vocab_size: int, flush_after: set[int]) -> None:
    """Documents as shards of the train split, with a shard border after the documents in `flush_after`."""
    writers = {split: SplitWriter(directory, split, token_dtype(vocab_size)) for split in SPLITS}
    for number, document in enumerate(documents):
        half = len(document) // 2
        writers["train"].append(document[:half], text_bytes=half, starts_document=True)
        writers["train"].append(document[half:], text_bytes=len(document) - half, starts_document=False)
        if number in flush_after:
            writers["train"].flush()
    for writer in writers.values():
        writer.flush()
    splits = {split: writer.index for split, writer in writers.items()}
    write_index(directory, vocab_size=vocab_size, splits=splits, tokenizer_sha256="", inputs=[])


def borders(directory: Path, split: str = "train") -> list[int]:
    files = sorted(directory.glob(f"{split}-*.documents.bin"))
    return [int(position) for file in files for position in np.fromfile(file, dtype="<u8")]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# ---------------------------------------------------------------------------------------------------------- shards


@SOME
@given(data=st.data(), large=st.booleans())
def test_tokens_come_back_as_one_sequence_whatever_the_shards(data: st.DataObject, large: bool) -> None:
    vocab_size = 100_000 if large else 65_536
    documents = data.draw(st.lists(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=20), max_size=12))
    flush_after = data.draw(st.sets(st.integers(0, 11)))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, documents, vocab_size=vocab_size, flush_after=flush_after)
        tokens = TokenArray(directory, "train")
        whole = [token for document in documents for token in document]
        assert len(tokens) == len(whole)
        assert tokens.read(0, len(whole) + 5).tolist() == whole
        start = data.draw(st.integers(0, len(whole) + 3))
        count = data.draw(st.integers(0, len(whole) + 3))
        assert tokens.read(start, count).tolist() == whole[start : start + count]
        assert tokens.read(start, count).dtype == np.int64
        index = tokens.index
        assert (index.tokens, index.bytes, index.documents) == (len(whole), len(whole), len(documents))
        assert index.max_id == max(whole, default=0)
        assert borders(directory) == [sum(map(len, documents[:number])) for number in range(len(documents))]
        for shard in index.shards:
            path = directory / shard["file"]
            assert path.stat().st_size == shard["tokens"] * (4 if large else 2)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]


def test_a_read_across_three_shards_and_the_place_of_a_token(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3], [4], [5, 6]], vocab_size=300, flush_after={0, 1})
    tokens = TokenArray(tmp_path, "train")
    assert len(tokens.shards) == 3
    assert tokens.read(2, 3).tolist() == [3, 4, 5]
    assert [tokens.place(position) for position in (0, 2, 3, 4, 5)] == [
        "train-00000.bin:0",
        "train-00000.bin:2",
        "train-00001.bin:0",
        "train-00002.bin:0",
        "train-00002.bin:1",
    ]
    assert len(TokenArray(tmp_path, "validation")) == 0
    assert TokenArray(tmp_path, "validation").read(0, 5).tolist() == []


def test_ids_take_two_bytes_up_to_65536_tokens_and_four_beyond() -> None:
    assert [token_dtype(size).name for size in (257, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


def test_a_cut_or_missing_shard_is_named_with_the_bytes_it_has_and_wants(tmp_path: Path) -> None:
    write(tmp_path, [[1, 2, 3], [4, 5]], vocab_size=300, flush_after={0})
    os.truncate(tmp_path / "train-00001.bin", 3)
    with pytest.raises(DataError, match=r"train-00001\.bin: has 3 bytes, want 4"):
        TokenArray(tmp_path, "train")
    (tmp_path / "train-00001.bin").unlink()
    with pytest.raises(DataError, match=r"train-00001\.bin: is missing"):
        TokenArray(tmp_path, "train")


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("format",), "other"),
        (("version",), 2),
        (("dtype",), "uint32"),
        (("vocab_size",), "many"),
        (("splits",), []),
        (("splits", "train", "tokens"), 6),
        (("splits", "train", "max_id"), 300),
        (("splits", "train", "shards"), [{"tokens": 5}]),
        (("splits", "train", "shards"), [{"file": "../other.bin", "tokens": 5}]),
    ],
)
def test_an_index_that_does_not_hold_together_is_refused(tmp_path: Path, path: tuple[str, ...], wrong: Any) -> None:
    write(tmp_path, [[1, 2, 3], [4, 5]], vocab_size=300, flush_after=set())
    document = json.loads((tmp_path / "index.json").read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = wrong
    (tmp_path / "index.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"index\.json: .*run gptcli prepare again"):
        read_index(tmp_path)


def test_a_directory_without_an_index_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gptcli prepare"):
        read_index(tmp_path)


# --------------------------------------------------------------------------------------------------------- prepare


def test_documents_of_small_batches_and_shards_come_back_whole(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = records(tmp_path / "corpus.jsonl", 60)
    monkeypatch.setattr(encode_module, "BATCH_CHARACTERS", 300)
    monkeypatch.setattr(encode_module, "PIECE_CHARACTERS", 50)
    data = DataConfig(train=(str(path),), validation_fraction=0.2)
    index = prepare(data, tokenizer, tmp_path / "out", report=Report(), shard_tokens=200)
    assert len(index["splits"]["train"].shards) > 5
    assert sum(index["splits"][split].documents for split in SPLITS) == 60
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    found = []
    for split in SPLITS:
        tokens = TokenArray(tmp_path / "out", split)
        starts = borders(tmp_path / "out", split)
        ids = tokens.read(0, len(tokens)).tolist()
        assert [number for number, token in enumerate(ids) if token == tokenizer.end_of_text] == starts
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            found.append(tokenizer.decode(ids[start + 1 : end]))
    assert found == texts
    fsio.verify(tmp_path / "out")


def test_a_second_preparation_is_refused_and_force_replaces_only_prepared_directories(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "corpus.txt").write_text(english(1, 100))
    data = DataConfig(train=(str(tmp_path / "corpus.txt"),))
    prepare(data, tokenizer, tmp_path / "out", report=Report())
    before = content(tmp_path / "out")
    with pytest.raises(RefusedError, match="--force"):
        prepare(data, tokenizer, tmp_path / "out", report=Report())
    prepare(data, tokenizer, tmp_path / "out", report=Report(), force=True)
    assert content(tmp_path / "out") == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").touch()
    with pytest.raises(RefusedError, match="does not replace it"):
        prepare(data, tokenizer, tmp_path / "photos", report=Report(), force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.txt", "out", "photos"}


def test_a_preparation_that_fails_at_once_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError):
        prepare(DataConfig(train=(str(tmp_path / "none.txt"),)), tokenizer, tmp_path / "out", report=Report())
    (tmp_path / "one.jsonl").write_text('{"text": "a"}\n')
    data = DataConfig(train=(str(tmp_path / "one.jsonl"),), validation_fraction=0.99)
    with pytest.raises(DataError, match="no training text is left"):
        prepare(data, tokenizer, tmp_path / "out", report=Report())
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError):
        prepare(DataConfig(train=(str(tmp_path / "empty.txt"),)), tokenizer, tmp_path / "out", report=Report())
    assert {path.name for path in tmp_path.iterdir()} == {"one.jsonl", "empty.txt"}


SLOW_PREPARE = """
import sys, time
from pathlib import Path
from gptcli.config.data import DataConfig
from gptcli.data.tokenizer import Tokenizer
from gptcli.base.report import Report
from gptcli.api.prepare import prepare
from gptcli.data import encode
seconds = float(sys.argv[4])
class Slow(Report):
    def progress(self, task, done, total, note="", *, unit=""):
        if task == "encode":
            time.sleep(seconds)
encode.BATCH_CHARACTERS = 1000
data = DataConfig(train=(sys.argv[1],), validation_fraction=0.2, validation_split="document")
prepare(data, Tokenizer.load(sys.argv[2]), Path(sys.argv[3]), report=Slow(), shard_tokens=700)
"""


def slow_prepare(directory: Path, output: str, seconds: float) -> subprocess.Popen[bytes]:
    arguments = [directory / "corpus.jsonl", directory / "tokenizer.json", directory / output, seconds]
    return subprocess.Popen([sys.executable, "-c", SLOW_PREPARE, *map(str, arguments)])


def test_a_preparation_killed_again_and_again_ends_with_the_bytes_of_an_unbroken_one(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    records(tmp_path / "corpus.jsonl", 400)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.content)
    assert slow_prepare(tmp_path, "whole", 0).wait() == 0
    journal = tmp_path / ".partial-broken" / "journal.json"
    draw = random.Random(3)
    reached = [0]
    for _ in range(3):
        process = slow_prepare(tmp_path, "broken", 0.1)
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            pieces = json.loads(journal.read_text())["pieces"] if journal.exists() else 0
            if pieces > reached[-1]:
                break
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(json.loads(journal.read_text())["pieces"])
        (journal.parent / ".tmp-journal.json-0a1b2c3d").touch()
    assert reached == sorted(set(reached))  # each went on from where the one before was killed
    assert slow_prepare(tmp_path, "broken", 0).wait() == 0
    assert content(tmp_path / "broken") == content(tmp_path / "whole")
    assert len(read_index(tmp_path / "whole")["splits"]["train"].shards) > 10
    assert {path.name for path in tmp_path.iterdir()} == {"broken", "whole", "corpus.jsonl", "tokenizer.json"}


def test_what_a_killed_preparation_of_other_text_left_is_not_used(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records(tmp_path / "corpus.jsonl", 100)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.content)
    process = slow_prepare(tmp_path, "out", 0.2)
    journal = tmp_path / ".partial-out" / "journal.json"
    while not journal.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    (tmp_path / "other.txt").write_text(english(7, 200))
    data = DataConfig(train=(str(tmp_path / "other.txt"),), validation_fraction=0.0)
    for name in ("out", "control"):
        prepare(data, tokenizer, tmp_path / name, report=Report())
    assert content(tmp_path / "out") == content(tmp_path / "control")


def test_standard_input_is_prepared_like_a_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.content)
    (tmp_path / "corpus.txt").write_text(english(1, 500) + "größer — 漢字\n")
    command = [sys.executable, "-m", "gptcli", "prepare", "-t", "tokenizer.json", "--json"]
    indexes = []
    for name, given_input in (("file", "corpus.txt"), ("stream", "-")):
        with (tmp_path / "corpus.txt").open("rb") as file:
            done = subprocess.run(
                [*command, given_input, "-o", name], cwd=tmp_path, stdin=file, capture_output=True, text=True
            )
        assert done.returncode == 0, done.stderr
        indexes.append(json.loads(done.stdout))
    for index in indexes:
        assert len(index["inputs"]) == 1
        del index["inputs"][0]["name"]
    assert indexes[0] == indexes[1]
    shards = [{k: v for k, v in content(tmp_path / name).items() if k.endswith(".bin")} for name in ("file", "stream")]
    assert shards[0] == shards[1]
    assert len(shards[0]) == 4
    done = subprocess.run([*command, "corpus.txt", "-o", "file"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 5
    assert "--force" in done.stderr


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("größer als weiß\n".encode("latin-1") * 9, {"encoding": "latin-1"}),
        (json.dumps({"line": "a word \\ and\n" * 150_000}).encode() + b'\n{"line": "next"}\n', {"field": "line"}),
    ],
    ids=["encoding", "long record"],
)
def test_a_stream_has_the_documents_of_a_file(tmp_path: Path, content: bytes, options: dict[str, str]) -> None:
    (tmp_path / "file").write_bytes(content)
    os.mkfifo(tmp_path / "stream")
    found = []
    for name in ("file", "stream"):
        path = (tmp_path / name).rename(tmp_path / f"{name}.{'jsonl' if 'field' in options else 'txt'}")
        writer = threading.Thread(target=lambda path=path: path.write_bytes(content))
        if name == "stream":
            writer.start()
        corpus = survey(DataConfig(train=(str(path),), validation_fraction=0.0, **options), tmp_path, Report())
        documents: list[str] = []
        for _, piece in read_corpus(corpus):
            documents += [""] * piece.starts_document
            documents[-1] += piece.text
        found.append(documents)
    writer.join()
    assert found[0] == found[1]
