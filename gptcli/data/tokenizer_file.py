"""A tokenizer.json as data: what is wrong with it, which part of it encodes text, and the bytes of its tokens.

Whatever the tokenizers library runs is taken: BPE of bytes or of characters with a fallback to bytes, Unigram,
WordPiece, WordLevel, with any normalizer and split.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import tokenizers

from gptcli.base.escape import escape

MAX_ID = 1 << 22
KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Decoders that only turn a mark into a space and names of bytes into bytes; what else they do is at a text's start.
_SPACES = ("Replace", "Metaspace", "BPEDecoder", "ByteFallback", "Fuse", "Strip")


class Unfit(Exception):
    """The reason why a well-formed tokenizer.json cannot be used."""


def ordinary_tokens(document: Mapping[str, Any]) -> dict[str, int]:
    """Return token -> id of the model's own vocabulary, without the added tokens."""
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {piece[0]: index for index, piece in enumerate(vocabulary)}
    return dict(vocabulary)


def added_tokens(document: Mapping[str, Any], *, special: bool) -> dict[str, int]:
    """Return token -> id of the added tokens: control tokens if `special`, else words that are cut out of a text
    first."""
    added = document.get("added_tokens") or []
    return {token["content"]: token["id"] for token in added if bool(token.get("special", True)) == special}


def check(document: Mapping[str, Any]) -> None:
    """Raise Unfit where ids collide or the unknown token is missing; KeyError or TypeError where it is no tokenizer."""
    model = document["model"]
    kind = model.get("type", "BPE")
    if kind not in KINDS:
        raise Unfit(f"a {escape(str(kind))} tokenizer; gptcli reads {', '.join(KINDS)}")
    by_name = ordinary_tokens(document)
    unknown = model.get("unk_token")
    if kind in ("WordPiece", "WordLevel") and unknown not in by_name:
        raise Unfit("its unknown token is not in the vocabulary; it cannot hold every text")
    if kind == "Unigram" and model.get("unk_id") is None:
        raise Unfit("it has no unknown token; it cannot hold every text")
    by_name |= {token["content"]: token["id"] for token in document.get("added_tokens") or []}
    if not all(type(index) is int and 0 <= index < MAX_ID for index in by_name.values()):
        raise Unfit(f"ids must be from 0 to {MAX_ID - 1}")
    if len(set(by_name.values())) < len(by_name):
        raise Unfit("two tokens have the same id")


def encoding_sha256(content: bytes) -> str:
    """Return the sha256 of what turns text into ids in a tokenizer.json; control tokens are not part of it, so that a
    model and what was fine-tuned from it have the same."""
    document = json.loads(content)
    parts = [document.get(name) for name in ("normalizer", "pre_tokenizer", "model")]
    words = sorted(added_tokens(document, special=False).items())
    return hashlib.sha256(json.dumps([*parts, words], sort_keys=True).encode()).hexdigest()


def encoding_part(document: Mapping[str, Any], controls: Collection[str]) -> dict[str, Any]:
    """Return the part of a tokenizer.json that encodes text: it yields no control token, and cuts, pads and adds
    nothing.

    A control token gets a name that no text can have, so that the others keep their ids.
    """
    hidden = {name: f"{secrets.token_hex(16)}" for name in controls}
    model = dict(document["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {hidden.get(token, token): index for token, index in vocabulary.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        made = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [merge for merge in made if hidden.keys().isdisjoint((*merge, "".join(merge)))]
    model.pop("dropout", None)  # random; for training a model only
    added = [{**token, "content": hidden.get(token["content"], token["content"])}
             for token in document.get("added_tokens") or []]  # fmt: skip
    nothing: dict[str, Any] = {"truncation": None, "padding": None, "post_processor": None}
    return {**document, **nothing, "added_tokens": added, "model": model}


def parts(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the steps of the normalizer, pre_tokenizer or decoder, without the sequences they are in."""
    return list(_flat(document.get(name), {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(name)))


def _flat(part: Any, key: str | None) -> Iterator[Mapping[str, Any]]:
    if not part:
        return
    if part.get("type") != "Sequence":
        yield part
        return
    for inner in part[key or "decoders"]:
        yield from _flat(inner, key)


def of_bytes(document: Mapping[str, Any]) -> bool:
    """Return whether the tokens are bytes, each written as a character (byte-level BPE)."""
    return any(part["type"] == "ByteLevel" for name in ("pre_tokenizer", "decoder") for part in parts(document, name))


def cut_between_words(document: Mapping[str, Any], patterns: Collection[str]) -> bool:
    """Return whether a text may be encoded in pieces, cut before a space and a letter: byte-level BPE whose split
    pattern is known to begin a word there."""
    split = parts(document, "pre_tokenizer")
    kinds = [part["type"] for part in split]
    added = [token for token in document.get("added_tokens") or [] if not token.get("special", True)]
    return (
        document["model"].get("type", "BPE") == "BPE"
        and all(part["type"] == "NFC" for part in parts(document, "normalizer"))
        and kinds[-1:] == ["ByteLevel"]
        and set(kinds[:-1]) <= {"Split", "Digits"}
        and not split[-1].get("add_prefix_space")
        and all(part["pattern"].get("Regex", "") in patterns for part in split if part["type"] == "Split")
        and all(part["behavior"] == "Isolated" and not part.get("invert") for part in split if part["type"] == "Split")
        and not any(re.search(r"\s", token["content"]) or token["lstrip"] or token["rstrip"] for token in added)
    )


def missing_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the bytes that no text may have: those without a token, where the tokens are bytes and none is for the
    rest."""
    if not of_bytes(document) or document["model"].get("unk_token") is not None:
        return b""
    return bytes(sorted(byte for char, byte in bytes_of_characters().items() if char not in document["model"]["vocab"]))


def token_bytes(document: Mapping[str, Any], encoder: tokenizers.Tokenizer, size: int) -> list[bytes]:
    """Return the bytes that each id stands for within a text; b"" for an id without a token."""
    found = [b""] * size
    ordinary, controls = ordinary_tokens(document), added_tokens(document, special=True)
    words = added_tokens(document, special=False)
    for token, index in (controls | words).items():
        found[index] = token.encode()
    ordinary = {token: index for token, index in ordinary.items() if not found[index]}
    decoder = parts(document, "decoder")
    if of_bytes(document):
        table = bytes_of_characters()
        for token, index in ordinary.items():
            known = all(character in table for character in token)
            found[index] = bytes(table[character] for character in token) if known else token.encode()
    elif decoder and all(part["type"] in _SPACES for part in decoder):
        falls_back = any(part["type"] == "ByteFallback" for part in decoder)
        marks = [mark for part in decoder if (mark := _mark_of_a_space(part))]
        for token, index in ordinary.items():
            if falls_back and (byte := _BYTE.fullmatch(token)):
                found[index] = bytes([int(byte[1], 16)])
                continue
            for mark in marks:
                token = token.replace(mark, " ")
            found[index] = token.encode()
    else:
        _ask_decoder(found, ordinary, encoder)
    return found


def _mark_of_a_space(decoder: Mapping[str, Any]) -> str | None:
    match decoder["type"]:
        case "Metaspace":
            return decoder.get("replacement", "▁")
        case "BPEDecoder":
            return decoder["suffix"]
        case "Replace":
            return decoder["pattern"]["String"] if decoder["content"] == " " else None
    return None


def _ask_decoder(found: list[bytes], ordinary: Mapping[str, int], encoder: tokenizers.Tokenizer) -> None:
    """Find the bytes that each token adds to a text by decoding it after another word."""
    word = next((index for token, index in ordinary.items() if token.isascii() and token.isalpha()), None)
    before = [] if word is None else [word]
    begun = encoder.decode(before, skip_special_tokens=False)
    for index in ordinary.values():
        text = encoder.decode([*before, index], skip_special_tokens=False)
        found[index] = text.removeprefix(begun).encode()


@functools.cache
def bytes_of_characters() -> dict[str, int]:
    """Return the byte for which each of GPT-2's printable characters stands."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}
