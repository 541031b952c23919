"""Reading loses neither text nor token ids, and raises nothing but our errors: properties."""

import gzip
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from texts import FEW, UTF8, pieces_of, set_limit, write
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from gptcli.base.errors import GptcliError
from gptcli.base.escape import escape
from gptcli.data.text import (
    Piece,
    TextOptions,
    find_sources,
    split_text,
)

ANY_TEXT = st.text(
    st.sampled_from("ab  .'\n\r\t1日é🙂\ufeff\x1c\u3000½s")
    | st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)


def read_bytes(content: bytes, name: str, options: TextOptions, piece_bytes: int) -> list[Piece]:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        set_limit(patch, "PIECE_BYTES", piece_bytes)
        return pieces_of(write(Path(directory, name), content), options)


@FEW
@given(ANY_TEXT, st.integers(1, 40), st.sampled_from(["utf-8", "utf-16", "utf-32-le"]), st.booleans())
def test_pieces_lose_nothing(text: str, piece_bytes: int, encoding: str, compressed: bool) -> None:
    content = text.encode(encoding)
    stored = gzip.compress(content) if compressed else content
    pieces = read_bytes(stored, "a.txt", TextOptions(encoding=encoding), piece_bytes)
    expected = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    assert [piece.text for piece in pieces if piece.text] == [
        piece for piece in split_text(expected, piece_bytes) if piece
    ]
    assert "".join(piece.text for piece in pieces) == expected
    assert sum(piece.raw_bytes for piece in pieces) == len(content)
    assert all(0 < len(piece.text) <= piece_bytes and piece.raw_bytes >= 0 for piece in pieces[:-1])
    assert [piece.starts_document for piece in pieces] == [
        index == 0 and expected != "" for index in range(len(pieces))
    ]


@FEW
@given(st.lists(st.text() | st.just("")), st.integers(1, 40), st.booleans())
def test_records_lose_nothing(texts: list[str], piece_bytes: int, ascii_only: bool) -> None:
    content = "".join(json.dumps({"text": text}, ensure_ascii=ascii_only) + "\n" for text in texts).encode()
    pieces = read_bytes(content, "a.jsonl", UTF8, piece_bytes)
    assert "".join(piece.text for piece in pieces) == "".join(texts)
    assert sum(piece.starts_document for piece in pieces) == sum(map(bool, texts))
    assert sum(piece.raw_bytes for piece in pieces) == len(content)


CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SAMPLE = "It's the cat's 12345 hats, and they'll   sit.\n\n  on a mat ... é日本 I'VE (said) so\t!\r\n" * 4


def trained_tokenizer(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == "gpt2")
    split = [pre_tokenizers.Split(Regex(CL100K_PATTERN), "isolated")] if pattern == "cl100k" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


TOKENIZERS = {pattern: trained_tokenizer(pattern) for pattern in ("gpt2", "cl100k")}
WORDS = st.lists(
    st.sampled_from([*"ab'.1é日½²ªsʰ\u0301\n\t\r  ", " a", " the", "  ", "'s ", " 12", "\x1c", "\u3000", "\x85"])
)


@pytest.mark.parametrize("pattern", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(WORDS.map("".join) | ANY_TEXT, st.integers(2, 30))
def test_pieces_have_the_ids_of_the_whole(pattern: str, text: str, limit: int) -> None:
    pieces = list(split_text(text, limit))
    # A hard cut may change ids at its border; what is glued together over the hard cuts must have the same ids.
    between_words = [""]
    for piece in pieces:
        if re.match(r" [^\W\d_]", piece) and between_words[-1][-1:].strip():
            between_words.append(piece)
        else:
            between_words[-1] += piece
    encode = TOKENIZERS[pattern].encode
    assert [id for piece in between_words for id in encode(piece).ids] == encode(text).ids


@pytest.mark.parametrize("pattern", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(WORDS.map("".join) | ANY_TEXT, st.integers(2, 30))
def test_pieces_that_end_between_words_have_the_ids_of_the_whole(pattern: str, text: str, limit: int) -> None:
    pieces = list(split_text(text, limit, anywhere=False))
    assert "".join(pieces) == text
    encode = TOKENIZERS[pattern].encode
    assert [id for piece in pieces for id in encode(piece).ids] == encode(text).ids


@FEW
@given(WORDS.map("".join) | ANY_TEXT, st.integers(1, 30))
def test_a_cut_goes_before_the_last_single_space_that_begins_a_word(text: str, limit: int) -> None:
    *cut, last = split_text(text, limit)
    start = 0
    for piece in cut:
        places = [i for i in range(start + 1, start + limit) if re.match(r"\S [^\W\d_]", text[i - 1 : i + 2])]
        places = [i for i in places if text[i + 1].isalpha()]
        assert start + len(piece) == (places or [start + limit])[-1]
        start += len(piece)
    assert len(last) <= limit


@pytest.mark.parametrize("pattern", TOKENIZERS)
def test_prose_is_never_cut_hard(pattern: str) -> None:
    pieces = list(split_text(SAMPLE, 40))
    encode = TOKENIZERS[pattern].encode
    assert len(pieces) > 5
    assert all(re.match(r" [^\W\d_]", piece) for piece in pieces[1:])
    assert [id for piece in pieces for id in encode(piece).ids] == encode(SAMPLE).ids


def test_a_cut_is_found_far_back_and_a_text_without_one_is_cut_at_the_limit() -> None:
    far_back = "one two" + "日" * 99_996 + " 1 2 3"
    assert [len(piece) for piece in split_text(far_back, 100_000)] == [3, 100_000, 6]
    assert list(split_text("aa ½b cc", 5)) == ["aa ½b", " cc"]  # a fraction is a numeral, no letter
    assert [len(piece) for piece in split_text("a" * 25, 10)] == [10, 10, 5]
    assert [len(piece) for piece in split_text("1 " * 20, 10)] == [10, 10, 10, 10]
    assert list(split_text("", 10)) == [""]
    assert list(split_text("a" * 25 + " a" * 10, 10, anywhere=False)) == ["a" * 25 + " a" * 2, " a" * 4, " a" * 4]


def read_or_refuse(content: bytes, name: str, options: TextOptions, piece_bytes: int) -> None:
    """Whatever comes out, text or message, can be written."""
    try:
        result = "".join(piece.text for piece in read_bytes(content, name, options, piece_bytes))
    except GptcliError as error:
        result = str(error)
    result.encode()


ENCODINGS = st.sampled_from(["utf-8", "utf-16", "utf-32", "latin-1", "ascii", "gb18030", "shift_jis", "iso2022_jp"])
OPTIONS = st.builds(TextOptions, encoding=ENCODINGS, errors=st.sampled_from(["strict", "replace", "ignore"]))
NAMES = st.sampled_from(["a.txt", "a.jsonl", "a.gz"])


@FEW
@given(st.binary(), NAMES, OPTIONS, st.integers(1, 64))
@example(b"\0\0\0\0\0\xdc", "a.txt", TextOptions(encoding="utf-16"), 6)
def test_random_bytes_raise_nothing_but_gptcli_errors(
    content: bytes, name: str, options: TextOptions, piece_bytes: int
) -> None:
    read_or_refuse(content, name, options, piece_bytes)


ROWS = b'{"text": "one two \\ud83d\\ude00", "x": [1, {"a": null}]}\n\n{"text": "three\\n"}\n' * 2


@FEW
@given(st.data(), st.sampled_from([ROWS, gzip.compress(ROWS), gzip.compress(ROWS) * 2]), NAMES, OPTIONS)
def test_damaged_files_raise_nothing_but_gptcli_errors(
    data: st.DataObject, content: bytes, name: str, options: TextOptions
) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), name, options, 16)


@FEW
@given(st.text(max_size=20))
def test_any_name_of_nothing_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(GptcliError) as caught:
        find_sources([f"no-such-directory/{name}"], UTF8)
    assert escape(str(caught.value), limit=1000) == str(caught.value)


def test_shown_escapes_controls_and_cuts_between_escapes() -> None:
    assert escape("a\tb\x7f\x85\u2028\u202e\u2066\ud800日é\\") == r"a\tb\x7f\x85\u2028\u202e\u2066\ud800日é" + "\\"
    assert escape("x" * 120) == "x" * 120
    assert escape("x" * 121) == "x" * 119 + "…"
    assert escape("ab\n\n", limit=5) == "ab\\n…"
    assert escape("") == ""
