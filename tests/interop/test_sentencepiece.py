"""tokenizer.model: the ids of the package sentencepiece, which wrote it."""

from __future__ import annotations

import functools
import io
import random

import pytest
from conftest import english
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.data.tokenizer import Tokenizer
from gptcli.interop.sentencepiece import read_model, tokenizer_json

spm = pytest.importorskip("sentencepiece")
KINDS = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
              "remove_extra_whitespaces": False, "split_digits": True},
    "bpe, nfkc": {"model_type": "bpe", "byte_fallback": True},
    "no prefix": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
                  "remove_extra_whitespaces": False, "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram"},
    "unigram of bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity",
                         "remove_extra_whitespaces": False},
}  # fmt: skip
EXACT = ("llama", "no prefix", "unigram of bytes")


@functools.cache
def made(kind: str) -> bytes:
    content = io.BytesIO()
    lines = [*english(300).splitlines(), "Größe, naïve façade 123", "日本 🙂"] * 2
    spm.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=content, vocab_size=420,
                                   hard_vocab_limit=False, minloglevel=2, num_threads=1, **KINDS[kind])  # fmt: skip
    return content.getvalue()


@functools.cache
def ours(kind: str) -> Tokenizer:
    return Tokenizer(tokenizer_json(read_model(made(kind))))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_sentencepiece(kind: str) -> None:
    theirs = spm.SentencePieceProcessor(model_proto=made(kind))
    draw = random.Random(1)
    parts = [*english(60).split(), "é", "日本", "語", "🙂", "12", "ﬁ", "  ", "\n", ".", "<s>"]
    for _ in range(500):
        text = " ".join(draw.choice(parts) for _ in range(draw.randrange(1, 9)))
        if "\n" in text and kind == "bpe, nfkc":
            continue
        assert ours(kind).encode(text) == theirs.encode(text), text


@pytest.mark.parametrize("kind", EXACT)
@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0"), max_size=30))
def test_any_text_comes_back(kind: str, text: str) -> None:
    assert ours(kind).text_bytes(ours(kind).encode(text)) == text.encode()


def test_a_cut_file_is_an_error_of_ours() -> None:
    content = made("llama")
    for place in (0, 1, 10, len(content) // 2, len(content) - 3):
        with pytest.raises((ValueError, KeyError)):
            read_model(content[:place])
