"""The tokenizer of a directory that transformers wrote, and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.data.tokenizer import END_OF_TEXT, Tokenizer, from_merges
from gptcli.interop.hf_read import inside

# Classes whose vocab.json and merges.txt are byte-level BPE -> the name of their split pattern.
MERGES_CLASSES = {None: "gpt2", "GPT2Tokenizer": "gpt2", "GPT2TokenizerFast": "gpt2",
                  "Qwen2Tokenizer": "qwen2", "Qwen2TokenizerFast": "qwen2"}  # fmt: skip


def read_tokenizer(directory: Path) -> Tokenizer:
    """From tokenizer.json or else vocab.json and merges.txt; DataError where there is none that gptcli can hold."""
    if path := inside(directory, "tokenizer.json"):
        return Tokenizer(path.read_bytes(), name=str(path))
    vocabulary, merges = inside(directory, "vocab.json"), inside(directory, "merges.txt")
    if vocabulary and merges:
        return _from_merges(directory, vocabulary, merges)
    if path := inside(directory, "tokenizer.model"):
        raise DataError(f"{shown(str(path))}: a SentencePiece tokenizer; gptcli reads byte-level BPE")
    raise DataError(
        f"{shown(str(directory))}: no tokenizer.json and no vocab.json with merges.txt; download the tokenizer too"
    )


def read_chat_template(directory: Path) -> str | None:
    """The chat template of a directory, if it has one."""
    if path := inside(directory, "chat_template.jinja"):
        return path.read_bytes().decode(errors="replace")
    template = _document(directory, "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None


def _from_merges(directory: Path, vocabulary_path: Path, merges_path: Path) -> Tokenizer:
    place = shown(str(vocabulary_path))
    settings = _document(directory, "tokenizer_config.json")
    kind = settings.get("tokenizer_class")
    if not isinstance(kind, str | None) or kind not in MERGES_CLASSES:
        raise DataError(
            f"{place}: tokenizer_class {shown(str(kind))}; want a tokenizer.json, as transformers writes it"
        )
    if settings.get("add_prefix_space"):
        raise DataError(f"{place}: add_prefix_space changes the text; gptcli cannot hold that")
    vocabulary = fsio.read_json(vocabulary_path)
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise DataError(f"{place}: want token: id for every token; the file is damaged")
    try:
        lines = merges_path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(str(merges_path))}: not UTF-8 ({error.reason}); the file is damaged") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#version"):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise DataError(f"{shown(str(merges_path))}:{number}: want two tokens, got {shown(line)}")
        merges.append((left, right))
    try:
        return from_merges(vocabulary, merges, _specials(directory, settings, vocabulary), pattern=MERGES_CLASSES[kind])
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _specials(directory: Path, settings: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Control tokens, by what the files beside vocab.json say."""
    found = {END_OF_TEXT: vocabulary.get(END_OF_TEXT)}
    for index, token in _mapping(settings.get("added_tokens_decoder")).items():
        found[_content(token)] = int(index) if str(index).isdecimal() else None
    found |= _document(directory, "added_tokens.json")
    for token in _document(directory, "special_tokens_map.json").values():
        for one in token if isinstance(token, list) else [token]:
            found.setdefault(_content(one), vocabulary.get(_content(one)))
    return {name: index for name, index in found.items() if name and type(index) is int}


def _content(token: Any) -> str:
    """A token is stored as its text or as a mapping with `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _mapping(document: Any) -> Mapping[str, Any]:
    return document if isinstance(document, dict) else {}


def _document(directory: Path, name: str) -> Mapping[str, Any]:
    path = inside(directory, name)
    return _mapping(fsio.read_json(path)) if path else {}
