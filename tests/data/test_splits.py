"""The splits of a corpus lie where they are said to."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_texts import SOME, english, records, text_of

from gptcli.api.prepare import prepare
from gptcli.base.report import Report
from gptcli.config.data import DataConfig
from gptcli.data.corpus import read_corpus, survey
from gptcli.data.shards import SPLITS, TokenArray
from gptcli.data.tokenizer import Tokenizer, learn_merges


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges(iter([english(1, 2000)]), vocab_size=300, pattern="gpt2")


@SOME
@given(
    parts=st.lists(st.text("abc \n", min_size=1, max_size=60), min_size=1, max_size=4),
    fraction=st.floats(0, 0.99),
)
def test_the_tail_split_cuts_ascii_text_at_exactly_the_byte_of_the_fraction(parts: list[str], fraction: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        for number, part in enumerate(parts):
            (Path(name) / f"{number}.txt").write_text(part)
        data = DataConfig(train=(name,), validation_fraction=fraction)
        pieces = list(read_corpus(survey(data, Path(name) / "spool", Report())))
        whole = "".join(parts)
        border = int(len(whole) * (1 - fraction))
        for split, wanted in (("train", whole[:border]), ("validation", whole[border:])):
            assert "".join(piece.text for given_split, piece in pieces if given_split == split) == wanted
        assert sum(piece.raw_bytes for _, piece in pieces) == len(whole)
        first = [piece for split, piece in pieces if split == "validation" and piece.text]
        assert not first or first[0].starts_document


@SOME
@given(text=st.text(min_size=1, max_size=80).filter(lambda text: text.strip("\ufeff\0\r")), fraction=st.floats(0, 0.99))
def test_the_tail_split_never_cuts_a_character(text: str, fraction: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "corpus.txt"
        path.write_bytes(("x" * 8 + text.replace("\0", "")).encode())
        data = DataConfig(train=(str(path),), validation_fraction=fraction)
        pieces = list(read_corpus(survey(data, Path(name) / "spool", Report())))
        joined = {split: "".join(piece.text for given, piece in pieces if given == split) for split in SPLITS}
        assert (joined["train"] + joined["validation"]).encode() == path.read_bytes()
        border = int(path.stat().st_size * (1 - fraction))
        assert border - 3 <= len(joined["train"].encode()) <= border


def drawn(path: Path, **data: Any) -> list[str]:
    config = DataConfig(train=(str(path),), validation_split="document", validation_fraction=0.25, **data)
    pieces = read_corpus(survey(config, path.parent / "spool", Report()))
    return [piece.text for split, piece in pieces if split == "validation" and piece.text]


def test_the_document_split_is_stable_and_takes_about_its_share(tmp_path: Path) -> None:
    path = records(tmp_path / "corpus.jsonl", 400)
    held_out = drawn(path)
    assert drawn(path) == held_out
    assert 70 <= len(held_out) <= 130
    longer = drawn(records(tmp_path / "longer.jsonl", 500))  # text that is added changes no earlier choice
    assert longer[: len(held_out)] == held_out


def test_the_same_bytes_are_the_same_corpus_by_any_name_and_another_where_they_are_read_in_another_way(
    tmp_path: Path,
) -> None:
    keys = set()
    for name in ("same.jsonl", "same.txt", "wiki_00"):
        path = records(tmp_path / name, 5)
        keys.add(survey(DataConfig(train=(str(path),)), tmp_path / "spool", Report()).key())
    assert len(keys) == 1
    for data in (DataConfig(train=(str(path),), separator="line"), DataConfig(train=(str(path),), on_bad_row="skip")):
        keys.add(survey(data, tmp_path / "spool", Report()).key())
    assert len(keys) == 3


def test_given_validation_inputs_leave_the_training_text_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "train.txt").write_text(english(1, 100))
    (tmp_path / "held.txt").write_text(english(2, 50))
    data = DataConfig(train=(str(tmp_path / "train.txt"),), validation=(str(tmp_path / "held.txt"),))
    prepare(data, tokenizer, tmp_path / "out", report=Report())
    assert text_of(tmp_path / "out", tokenizer, "train") == english(1, 100)
    assert text_of(tmp_path / "out", tokenizer, "validation") == english(2, 50)


def test_a_fraction_of_zero_leaves_the_validation_split_empty(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "corpus.txt").write_text(english(1, 100))
    data = DataConfig(train=(str(tmp_path / "corpus.txt"),), validation_fraction=0.0)
    index = prepare(data, tokenizer, tmp_path / "out", report=Report())
    assert index["splits"]["validation"].tokens == 0
    assert len(TokenArray(tmp_path / "out", "validation")) == 0
    assert text_of(tmp_path / "out", tokenizer, "train") == english(1, 100)
