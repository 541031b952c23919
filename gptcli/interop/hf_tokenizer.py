"""The tokenizer of a directory that transformers wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.tokenizer import END_OF_TEXT, Tokenizer, from_merges, special
from gptcli.interop import sentencepiece
from gptcli.interop.hf_read import inside

# Classes whose vocab.json and merges.txt are byte-level BPE -> the name of their split pattern.
MERGES_CLASSES = {None: "gpt2", "GPT2Tokenizer": "gpt2", "GPT2TokenizerFast": "gpt2",
                  "Qwen2Tokenizer": "qwen2", "Qwen2TokenizerFast": "qwen2"}  # fmt: skip
WORDPIECE_CONTROLS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read a directory's tokenizer files, tokenizer.json first; DataError where none can be read."""
    if path := inside(directory, "tokenizer.json"):
        return Tokenizer(path.read_bytes(), name=str(path))
    vocabulary, merges = inside(directory, "vocab.json"), inside(directory, "merges.txt")
    if vocabulary and merges:
        return _from_merges(directory, vocabulary, merges)
    for name in SENTENCEPIECE:
        if path := inside(directory, name):
            return _from_sentencepiece(path, _document(directory, "tokenizer_config.json"))
    if path := inside(directory, "vocab.txt"):
        return _from_words(path, _document(directory, "tokenizer_config.json"))
    raise DataError(
        f"{escape(str(directory))}: no tokenizer.json, no vocab.json with merges.txt, no tokenizer.model and no "
        "vocab.txt; download the tokenizer too"
    )


def _from_sentencepiece(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    try:
        model = sentencepiece.read_model(path.read_bytes())
        added = {int(index): _content(token) for index, token in _mapping(settings.get("added_tokens_decoder")).items()}
        known = {piece.text for piece in model.pieces}
        for index, token in sorted(added.items()):
            if token not in known and index == len(model.pieces):  # those that were added after training
                model.pieces.append(sentencepiece.Piece(token, 0.0, sentencepiece.Kind.CONTROL))
        return Tokenizer(sentencepiece.tokenizer_json(model), name=str(path))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{escape(str(path))}: not a SentencePiece model ({escape(str(error))})") from None


def _from_words(path: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Read BERT's WordPiece from vocab.txt, a token on each line."""
    try:
        tokens = path.read_bytes().decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{escape(str(path))}: not UTF-8 ({error.reason}); the file is damaged") from None
    small = settings.get("do_lower_case", True) is not False
    by_name = {token: index for index, token in enumerate(tokens)}
    document = {
        "version": "1.0",
        "added_tokens": [special(by_name[token], token) for token in WORDPIECE_CONTROLS if token in by_name],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": small},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": by_name},
    }  # fmt: skip
    return Tokenizer(json.dumps(document, ensure_ascii=False).encode(), name=str(path))


def _from_merges(directory: Path, vocabulary_path: Path, merges_path: Path) -> Tokenizer:
    place = escape(str(vocabulary_path))
    settings = _document(directory, "tokenizer_config.json")
    kind = settings.get("tokenizer_class")
    if not isinstance(kind, str | None) or kind not in MERGES_CLASSES:
        raise DataError(
            f"{place}: tokenizer_class {escape(str(kind))}; want a tokenizer.json, as transformers writes it"
        )
    if settings.get("add_prefix_space"):
        raise DataError(f"{place}: add_prefix_space changes the text; gptcli cannot hold that")
    vocabulary = fsio.read_json(vocabulary_path)
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise DataError(f"{place}: want token: id for every token; the file is damaged")
    try:
        lines = merges_path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{escape(str(merges_path))}: not UTF-8 ({error.reason}); the file is damaged") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#version"):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise DataError(f"{escape(str(merges_path))}:{number}: want two tokens, got {escape(line)}")
        merges.append((left, right))
    try:
        return from_merges(vocabulary, merges, _specials(directory, settings, vocabulary), pattern=MERGES_CLASSES[kind])
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _specials(directory: Path, settings: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the control tokens that the files beside vocab.json name."""
    found = {END_OF_TEXT: vocabulary.get(END_OF_TEXT)}
    for index, token in _mapping(settings.get("added_tokens_decoder")).items():
        found[_content(token)] = int(index) if str(index).isdecimal() else None
    found |= _document(directory, "added_tokens.json")
    for token in _document(directory, "special_tokens_map.json").values():
        for one in token if isinstance(token, list) else [token]:
            found.setdefault(_content(one), vocabulary.get(_content(one)))
    return {name: index for name, index in found.items() if name and type(index) is int}


def _content(token: Any) -> str:
    """Return a token is stored as its text or as a mapping with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _mapping(document: Any) -> Mapping[str, Any]:
    return document if isinstance(document, dict) else {}


def _document(directory: Path, name: str) -> Mapping[str, Any]:
    path = inside(directory, name)
    return _mapping(fsio.read_json(path)) if path else {}
