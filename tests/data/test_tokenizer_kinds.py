"""Tokenizers of other kinds than ours: ids equal to those of transformers, and what decoding promises."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer

from gptcli.base.errors import DataError
from gptcli.data.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?\n\n  Indented  text\t\twith tabs\r\n",
    "Größe, naïve façade, Привет мир, 你好世界, مرحبا, 🙂👩‍👩‍👧, e\u0301, print(x[1:23])\n",
] * 3
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["paracetamol", "<think>", "</think>", "        ", "Tab\tword"]
SPECIALS = ["<unk>", "<s>", "</s>", "[PAD]"]


def sentencepiece_bpe(first: list[Any], decoder: list[Any], pre: Any = None) -> HuggingFaceTokenizer:
    """As those of Llama, Mistral and Gemma: BPE of characters, with bytes for those it does not know."""
    learnt = HuggingFaceTokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learnt.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=[]))
    model = json.loads(learnt.to_str())["model"]
    by_name = {token: index for index, token in enumerate([*SPECIALS, *BYTES, "▁", *model["vocab"]])}
    by_name = {token: index for index, token in enumerate(by_name)}
    merges = [tuple(merge) for merge in model["merges"]]
    made = HuggingFaceTokenizer(
        models.BPE(by_name, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # type: ignore[arg-type]
    )
    made.normalizer = normalizers.Sequence(first)
    made.decoder = decoders.Sequence(decoder)
    if pre is not None:
        made.pre_tokenizer = pre
    made.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made


def llama() -> HuggingFaceTokenizer:
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return sentencepiece_bpe(spaces, back)


def gemma() -> HuggingFaceTokenizer:
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return sentencepiece_bpe(
        [normalizers.Replace(" ", "▁")], back, pre_tokenizers.Split(" ", behavior="merged_with_previous")
    )


def mistral() -> HuggingFaceTokenizer:
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return sentencepiece_bpe([], back, pre_tokenizers.Metaspace(prepend_scheme="first", split=False))


def trained(model: Any, trainer: Any, **settings: Any) -> HuggingFaceTokenizer:
    made = HuggingFaceTokenizer(model)
    for name, value in settings.items():
        setattr(made, name, value)
    made.train_from_iterator(CORPUS, trainer)
    return made


def bpe(**how: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=SPECIALS, **how)


def byte_level(*, prefix: bool, alphabet: bool) -> HuggingFaceTokenizer:
    first = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    split = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return trained(models.BPE(), bpe(initial_alphabet=first), pre_tokenizer=split, decoder=decoders.ByteLevel())


def unigram() -> HuggingFaceTokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=300, show_progress=False, special_tokens=SPECIALS, unk_token="<unk>")
    return trained(
        models.Unigram(), trainer, normalizer=normalizers.Sequence([normalizers.NFKC()]),
        pre_tokenizer=pre_tokenizers.Metaspace(), decoder=decoders.Metaspace(),
    )  # fmt: skip


def word_piece() -> HuggingFaceTokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=400, show_progress=False, special_tokens=["[UNK]", *SPECIALS])
    return trained(
        models.WordPiece(unk_token="[UNK]"), trainer, normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(), decoder=decoders.WordPiece(),
    )  # fmt: skip


def end_of_word() -> HuggingFaceTokenizer:
    return trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"), bpe(end_of_word_suffix="</w>"),
        normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
        pre_tokenizer=pre_tokenizers.Whitespace(), decoder=decoders.BPEDecoder(),
    )  # fmt: skip


def words() -> HuggingFaceTokenizer:
    trainer = trainers.WordLevelTrainer(vocab_size=100, show_progress=False, special_tokens=SPECIALS)
    return trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizer=pre_tokenizers.Whitespace())


def own_pattern() -> HuggingFaceTokenizer:
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"), behavior="isolated")
    steps = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(models.BPE(), bpe(initial_alphabet=alphabet), pre_tokenizer=steps, decoder=decoders.ByteLevel())


KINDS = {
    "llama": llama,
    "gemma": gemma,
    "mistral": mistral,
    "byte-level with a prefix": functools.partial(byte_level, prefix=True, alphabet=True),
    "byte-level without some bytes": functools.partial(byte_level, prefix=False, alphabet=False),
    "byte-level of another pattern": own_pattern,
    "Unigram": unigram,
    "WordPiece": word_piece,
    "end of word": end_of_word,
    "whole words": words,
}
EXACT = ("llama", "gemma", "byte-level without some bytes", "byte-level of another pattern")


@functools.cache
def made(kind: str) -> HuggingFaceTokenizer:
    """With words that were added, as add_tokens of transformers does."""
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens([AddedToken(word, normalized=True) for word in WORDS[:2]])
    tokenizer.add_tokens([AddedToken(word, normalized=False, single_word=word == "</think>") for word in WORDS[2:]])
    return tokenizer


@functools.cache
def ours(kind: str) -> Tokenizer:
    return Tokenizer(made(kind).to_str().encode(), name=kind)


def held(kind: str, text: str) -> str:
    """The text without the characters that the tokenizer has no bytes for."""
    if kind != "byte-level without some bytes":
        return text
    return "".join(c for c in text if set(c.encode()) <= bytes_held(kind))


@functools.cache
def bytes_held(kind: str) -> set[int]:
    return {token[0] for token in ours(kind).token_bytes if len(token) == 1}


def texts(kind: str, count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    pieces = [
        *WORDS,
        *"  \n\t.,!?'",
        " the",
        "The",
        " fox",
        "12345",
        "é",
        "e\u0301",
        "ﬁ",
        "你好",
        "🙂",
        "Å",
        "▁",
        "\u00a0",
    ]

    def piece() -> str:
        match draw.randrange(4):
            case 0:
                return draw.choice(CORPUS)[draw.randrange(40) :][: draw.randrange(12)]
            case 1:
                return chr(draw.choice((draw.randrange(1, 0x250), draw.randrange(0x3040, 0x9FFF), 0x1F600)))
            case _:
                return draw.choice(pieces)

    return [held(kind, "".join(piece() for _ in range(draw.randrange(12)))) for _ in range(count)]


def same_ids(kind: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    made(kind).save(str(path))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    rows = texts(kind, count, seed=count)
    wanted = theirs(rows, add_special_tokens=False)["input_ids"]
    assert ours(kind).encode_batch(rows) == wanted
    assert [ours(kind).encode(row) for row in rows[:50]] == wanted[:50]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    same_ids(kind, 500, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers_for_many_texts(kind: str, tmp_path: Path) -> None:
    same_ids(kind, 10_000, tmp_path)


@pytest.mark.parametrize("kind", EXACT)
@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bytes_come_back_where_the_tokenizer_allows_it(kind: str, text: str) -> None:
    text = held(kind, text).replace("▁", "_")  # which is a space there
    tokenizer = ours(kind)
    assert tokenizer.lossy == [] or kind == "byte-level without some bytes"
    assert tokenizer.text_bytes(tokenizer.encode(text)) == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_that_of_transformers_whatever_is_lost(kind: str) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    ids = ours(kind).encode(text)
    assert ours(kind).text_bytes(ids).decode().strip() == made(kind).decode(ids, skip_special_tokens=False).strip()


def test_what_a_tokenizer_does_to_text_is_said() -> None:
    assert "takes letters as small ones" in ours("WordPiece").lossy
    assert "drops accents" in ours("WordPiece").lossy
    assert "rewrites characters (Unicode NFC or NFKC)" in ours("Unigram").lossy
    assert ours("byte-level with a prefix").lossy == ["joins, drops or adds white space"]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(parts=st.lists(st.sampled_from([*SPECIALS, "<", "s", ">", "unk", "[", "PAD", "]", " ", "▁"]), max_size=8))
def test_text_never_becomes_a_control_token(kind: str, parts: list[str]) -> None:
    tokenizer = ours(kind)
    controls = set(tokenizer.specials.values()) - {tokenizer.specials.get("<unk>"), tokenizer.specials.get("[UNK]")}
    try:
        ids = tokenizer.encode("".join(parts))
    except DataError:
        assert kind == "byte-level without some bytes"
        return
    assert not controls & set(ids)


def test_a_byte_without_a_token_is_refused_by_its_place() -> None:
    with pytest.raises(DataError, match=r"character 3 has the byte 0x04.*no token"):
        ours("byte-level without some bytes").encode("th\x04e")


def test_the_marks_of_a_file_are_those_it_names_and_leave_the_rest_as_it_is() -> None:
    plain = ours("llama")
    assert (plain.begin, plain.ends, plain.bos_ids, plain.eos_ids) == (None, (), [], [])
    marked = plain.with_marks("<s>", ["</s>", "<none>"])
    assert (marked.bos_ids, marked.eos_ids) == ([marked.specials["<s>"]], [marked.specials["</s>"]])
    assert marked.plain_content == plain.content
    assert Tokenizer(marked.content).sha256 == marked.sha256 != plain.sha256
    more = marked.with_specials(["<|new|>"])
    assert (more.begin, more.ends) == (marked.begin, marked.ends)
    assert HuggingFaceTokenizer.from_str(more.plain_content.decode()).token_to_id("<|new|>") == more.vocab_size - 1


def test_a_rendered_text_has_the_ids_of_transformers() -> None:
    text = "<s>The fox</s> <s> over"
    wanted = made("llama").encode(text, add_special_tokens=False)
    assert ours("llama").encode_rendered(text) == (wanted.ids, wanted.offsets)
