"""The tokenizer: exact both ways, no control token out of text, and no damaged file taken for a good one."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import ConfigError, DataError
from gptcli.data.learn_tokenizer import learning_bytes, sample_evenly
from gptcli.data.split import cut_runs
from gptcli.data.tokenizer import END_OF_TEXT, PATTERNS, Tokenizer, learn_merges

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?\n\n  Indented  text\t\twith tabs\r\n",
    "Größe, naïve façade, Привет мир, 你好世界, مرحبا, 🙂👩‍👩‍👧, e\u0301, print(x[1:23])\n",
    f"a document about {END_OF_TEXT} and <|user|> and <| endoftext |>\n",
]
SPECIALS = ["<|user|>", "<|assistant|>"]
TOKENIZERS = {name: learn_merges(CORPUS * 3, vocab_size=400, pattern=name, specials=SPECIALS) for name in PATTERNS}
MANY = settings(deadline=None, max_examples=200)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)  # any characters, but for lone surrogates
HOSTILE_PARTS = ["<|", "|>", "endoftext", END_OF_TEXT, "<|user|>", "user", " ", "\n", "a", "1", "é", "\x00"]
HOSTILE = st.lists(st.sampled_from(HOSTILE_PARTS), max_size=12).map("".join)

every_pattern = pytest.mark.parametrize("pattern", list(PATTERNS))


# --------------------------------------------------------------------------------------------------- round trips


@every_pattern
@MANY
@given(text=TEXT | HOSTILE)
def test_decoding_gives_back_any_text(pattern: str, text: str) -> None:
    tokenizer = TOKENIZERS[pattern]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@every_pattern
@MANY
@given(text=TEXT | HOSTILE)
def test_text_never_becomes_a_special_token(pattern: str, text: str) -> None:
    tokenizer = TOKENIZERS[pattern]
    assert len(tokenizer.specials) == 3
    assert not set(tokenizer.encode(text)) & set(tokenizer.specials.values())


@every_pattern
@settings(deadline=None, max_examples=50)
@given(texts=st.lists(TEXT | HOSTILE, max_size=8))
def test_a_batch_encodes_as_its_texts_alone(pattern: str, texts: list[str]) -> None:
    tokenizer = TOKENIZERS[pattern]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@MANY
@given(TEXT, st.integers(0, 60), st.integers(0, 60))
def test_any_run_of_ids_decodes_to_its_exact_bytes(text: str, start: int, count: int) -> None:
    """Also where a cut goes through a character."""
    tokenizer = TOKENIZERS["gpt2"]
    ids = tokenizer.encode(text)
    before, run = tokenizer.decode_bytes(ids[:start]), tokenizer.decode_bytes(ids[start : start + count])
    assert text.encode()[len(before) : len(before) + len(run)] == run
    assert tokenizer.decode(ids[start : start + count]) == run.decode("utf-8", "replace")


def test_every_byte_has_a_token_and_specials_decode_to_their_names() -> None:
    tokenizer = TOKENIZERS["gpt2"]
    assert {bytes([byte]) for byte in range(256)} <= set(tokenizer.token_bytes)
    ids = [*tokenizer.specials.values()]
    assert tokenizer.decode(ids) == END_OF_TEXT + "<|user|><|assistant|>"


def test_ids_outside_of_the_vocabulary_are_an_index_error() -> None:
    with pytest.raises(IndexError):
        TOKENIZERS["gpt2"].decode([TOKENIZERS["gpt2"].vocab_size])


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        TOKENIZERS["gpt2"].encode("a\ud800b")
    with pytest.raises(UnicodeEncodeError):
        TOKENIZERS["gpt2"].encode_batch(["fine", "a\ud800b"])


# ---------------------------------------------------------------------------------------------- transformers, files


@every_pattern
def test_transformers_gives_the_same_ids(pattern: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = TOKENIZERS[pattern]
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.content)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in [*CORPUS[:2], "", " ", "  a", "don't\n\n\nstop 1234567", "日本語 ☃\u00a0x"]:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    assert theirs.convert_tokens_to_ids([END_OF_TEXT, *SPECIALS]) == list(tokenizer.specials.values())
    assert len(theirs) == tokenizer.vocab_size


def test_a_saved_tokenizer_loads_as_itself(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZERS["llama3"].content)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.sha256 == TOKENIZERS["llama3"].sha256
        assert (loaded.specials, loaded.vocab_size) == (TOKENIZERS["llama3"].specials, 400)
        assert loaded.encode(CORPUS[0]) == TOKENIZERS["llama3"].encode(CORPUS[0])


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; make one with gptcli train-tokenizer"):
        Tokenizer.load(tmp_path / "none.json")


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(TOKENIZERS["qwen2"].content)
    change(document)
    return json.dumps(document).encode()


def test_a_file_of_gpt2_with_its_special_in_the_vocabulary_is_read() -> None:
    name = TOKENIZERS["qwen2"].specials
    tokenizer = Tokenizer(edited(lambda document: document["model"]["vocab"].update(name)))
    assert tokenizer.specials == name
    assert tokenizer.encode(CORPUS[2]) == TOKENIZERS["qwen2"].encode(CORPUS[2])


def test_truncation_padding_and_templates_of_a_file_are_left_out() -> None:
    def change(document: dict[str, Any]) -> None:
        document["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        document["padding"] = {"strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None}
        document["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "!"}

    tokenizer = Tokenizer(edited(change))
    assert tokenizer.encode(CORPUS[0]) == TOKENIZERS["qwen2"].encode(CORPUS[0])
    assert tokenizer.encode_batch(CORPUS) == TOKENIZERS["qwen2"].encode_batch(CORPUS)


def test_a_special_named_like_a_word_of_the_vocabulary_is_no_text() -> None:
    def change(document: dict[str, Any]) -> None:
        document["model"]["ignore_merges"] = True
        document["model"]["vocab"]["zebra"] = 900
        document["added_tokens"].append({**document["added_tokens"][0], "id": 900, "content": "zebra"})

    tokenizer = Tokenizer(edited(change))
    assert tokenizer.specials["zebra"] == 900
    assert 900 not in tokenizer.encode("zebra")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document["model"].update(type="Gru"), "a Gru tokenizer; gptcli reads BPE, Unigram"),
        (lambda document: document["model"].update(type="WordPiece"), "its unknown token is not in the vocabulary"),
        (lambda document: document.update(gptcli={"begin": 7, "ends": []}), "want the names of tokens"),
        (lambda document: document["model"]["vocab"].update(a=-1), "ids must be from 0"),
        (lambda document: document["model"]["vocab"].update(a=1 << 40), "ids must be from 0"),
        (lambda document: document["model"]["vocab"].update(a=1.5), "ids must be from 0"),
        (lambda document: document["model"]["vocab"].update(a=5, b=5), "two tokens have the same id"),
        (lambda document: document["added_tokens"][0].update(id=5), "two tokens have the same id"),
        (lambda document: document["model"]["merges"].append(["q", "q"]), "not a tokenizer.json"),
        (lambda document: document.pop("model"), "not a tokenizer.json"),
        (lambda document: document.update(added_tokens=7), "not a tokenizer.json"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^tokenizer.json: .*{message}"):
        Tokenizer(edited(change))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"1", b'"', b"\xff\xfe", b"{}", b"[" * 100_000, b"not json"])
def test_a_file_that_is_not_a_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^hostile\.json: not a tokenizer\.json"):
        Tokenizer(content, name="hostile.json")


@settings(deadline=None, max_examples=50)
@given(st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(share: float) -> None:
    content = TOKENIZERS["gpt2"].content
    with pytest.raises(DataError):
        Tokenizer(content[: int(share * len(content))])


def test_control_characters_of_a_hostile_file_do_not_reach_the_terminal() -> None:
    with pytest.raises(DataError) as caught:
        Tokenizer(edited(lambda document: document["model"].update(type="\x1b[31mred")))
    assert "\x1b" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ learning


def test_specials_have_the_last_ids_in_their_order() -> None:
    tokenizer = TOKENIZERS["gpt2"]
    assert tokenizer.vocab_size == 400
    assert tokenizer.specials == {END_OF_TEXT: 397, "<|user|>": 398, "<|assistant|>": 399}
    assert tokenizer.end_of_text == 397


def test_the_smallest_vocabulary_is_bytes_and_specials() -> None:
    tokenizer = learn_merges(CORPUS, vocab_size=257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode(CORPUS[1])) == len(CORPUS[1].encode())


def test_a_corpus_with_few_words_gives_a_smaller_vocabulary() -> None:
    tokenizer = learn_merges(["ab ab ab"], vocab_size=1000)
    assert 257 < tokenizer.vocab_size < 262
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1


def test_an_empty_corpus_gives_the_bytes() -> None:
    assert learn_merges([], vocab_size=1000).vocab_size == 257


def test_learning_twice_gives_the_same_file() -> None:
    first, second = (learn_merges(CORPUS * 3, vocab_size=350, pattern="qwen2") for _ in range(2))
    assert first.content == second.content


@pytest.mark.parametrize(("vocab_size", "specials"), [(256, ()), (258, SPECIALS), (0, ()), ((1 << 20) + 1, ())])
def test_a_vocabulary_that_is_too_small_or_too_large_is_refused(vocab_size: int, specials: list[str]) -> None:
    smallest = 257 + len(specials)
    with pytest.raises(ConfigError, match=rf"--vocab-size: must be from {smallest} .* to 1048576, got {vocab_size}"):
        learn_merges(CORPUS, vocab_size=vocab_size, specials=specials)


@pytest.mark.parametrize("specials", [[""], ["<|a|>", "<|a|>"]])
def test_specials_that_cannot_be_are_refused(specials: list[str]) -> None:
    with pytest.raises(ConfigError, match="--special: special tokens must be distinct and not empty"):
        learn_merges(CORPUS, vocab_size=300, specials=specials)


def test_a_special_that_is_an_ordinary_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="--special: a is an ordinary token too"):
        learn_merges(CORPUS, vocab_size=300, specials=["a"])


# ------------------------------------------------------------------------------------------------------ sampling


@MANY
@given(st.lists(st.text(max_size=30), max_size=200), st.integers(1, 400))
def test_a_sample_is_at_most_so_many_bytes(texts: list[str], max_bytes: int) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    sample = list(sample_evenly(texts, max_bytes))
    assert sum(len(text.encode()) for text in sample) <= max_bytes
    if sum(map(learning_bytes, texts)) <= max_bytes:
        assert sample == texts


@MANY
@given(count=st.integers(1, 500), max_bytes=st.integers(4, 4000))
def test_a_sample_is_spread_evenly_and_fills_at_least_half(count: int, max_bytes: int) -> None:
    numbers = [int(text) for text in sample_evenly((f"{number:04d}" for number in range(count)), max_bytes)]
    stride = numbers[1] - numbers[0] if len(numbers) > 1 else count
    assert len(numbers) == 1 or numbers == list(range(0, count, stride))
    assert 4 * len(numbers) <= max_bytes
    assert 4 * len(numbers) >= min(4 * count, max_bytes - 4) / 2


@given(st.lists(st.tuples(st.sampled_from(["a", "é", " ", "\n", "ab c"]), st.integers(1, 60_000)), max_size=5))
@settings(deadline=None, max_examples=50)
def test_only_within_a_run_that_is_too_long_is_text_cut(parts: list[tuple[str, int]]) -> None:
    text = "".join(unit * (count // len(unit)) for unit, count in parts)
    wanted = [cut for run in re.finditer(r"\s+|\S+", text) for cut in range(run.start() + 25_000, run.end(), 25_000)]
    pieces = cut_runs(text, 25_000)
    assert "".join(pieces) == text
    assert list(itertools.accumulate(map(len, pieces)))[:-1] == wanted
