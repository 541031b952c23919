"""SentencePiece models as a tokenizer.json: tokenizer.model, and the same pieces as GGUF files carry them.

A tokenizer.model is a protocol buffer (sentencepiece_model.proto); the few fields that matter are read here.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

SPACE = "▁"


class Kind(IntEnum):
    """The kind of a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """A SentencePiece model: pieces by id, and what is done to a text before it is cut."""

    pieces: list[Piece]
    unigram: bool = False  # the likeliest pieces (Kudo 2018); else merged by score, as BPE
    prefix: bool = True  # a space is put before the text
    squeeze: bool = False  # runs of spaces become one, those at the ends none
    charsmap: bytes = b""  # how characters are rewritten


def tokenizer_json(model: Model, begin: int | None = None) -> bytes:
    """Return the tokenizer.json that gives the ids of the model, `begin` before them. Text that it does not know falls
    back to bytes where it has them."""
    by_name = {piece.text: index for index, piece in reversed(list(enumerate(model.pieces)))}
    falls_back = any(piece.kind == Kind.BYTE for piece in model.pieces)
    unknown = next((index for index, piece in enumerate(model.pieces) if piece.kind == Kind.UNKNOWN), None)
    cut: dict[str, Any]
    if model.unigram:
        cut = {"type": "Unigram", "unk_id": unknown, "byte_fallback": falls_back,
               "vocab": [[piece.text, piece.score] for piece in model.pieces]}  # fmt: skip
    else:
        cut = {"type": "BPE", "dropout": None, "unk_token": None if unknown is None else model.pieces[unknown].text,
               "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
               "byte_fallback": falls_back, "ignore_merges": False, "vocab": by_name,
               "merges": merges(model.pieces, by_name)}  # fmt: skip
    added = [
        {"id": index, "content": piece.text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": piece.kind == Kind.USER_DEFINED, "special": piece.kind != Kind.USER_DEFINED}
        for index, piece in enumerate(model.pieces)
        if piece.kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED) and by_name[piece.text] == index
    ]  # fmt: skip
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": list(_normalizers(model))},
        "pre_tokenizer": None,
        "post_processor": None if begin is None else begins_text(model.pieces[begin].text, begin),
        "decoder": {"type": "Sequence", "decoders": _decoders(prefix=model.prefix)},
        "model": cut,
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def begins_text(token: str, index: int) -> dict[str, Any]:
    """Return the post_processor of a tokenizer.json that puts a token before every text, as `begins_with` reads it."""
    mark: dict[str, Any] = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {"type": "TemplateProcessing", "single": [mark, first], "pair": [mark, first, second],
            "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}}}  # fmt: skip


def merges(pieces: list[Piece], by_name: dict[str, int]) -> list[list[str]]:
    """Return every pair of pieces that makes another, the best score first: what a BPE model merges, in that order."""
    found = []
    for piece in pieces:
        if piece.kind != Kind.NORMAL:
            continue
        text = piece.text
        halves = ((text[:place], text[place:]) for place in range(1, len(text)))
        pairs = [(left, right) for left, right in halves if left in by_name and right in by_name]
        found += [
            (piece.score, left, right) for left, right in sorted(pairs, key=lambda p: (by_name[p[0]], by_name[p[1]]))
        ]
    found.sort(key=lambda pair: (pair[0], len(pair[1]), len(pair[2])), reverse=True)
    return [[left, right] for _, left, right in found]


def _normalizers(model: Model) -> Iterator[dict[str, Any]]:
    if model.charsmap:
        yield {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()}
    if model.squeeze:
        yield {"type": "Strip", "strip_left": True, "strip_right": True}
        yield {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    if model.prefix:
        yield {"type": "Prepend", "prepend": SPACE}
    yield {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


def _decoders(*, prefix: bool) -> list[dict[str, Any]]:
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, *strip]  # fmt: skip


# ------------------------------------------------------------------------------------------------- tokenizer.model


def read_model(content: bytes) -> Model:
    """Return the model of a tokenizer.model; ValueError where it is damaged or neither BPE nor Unigram."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(content):
        if number == 1:
            piece = dict(_fields(value))
            (score,) = struct.unpack("<f", piece.get(2, b"\0\0\0\0"))
            pieces.append(Piece(piece[1].decode(), score, piece.get(3, Kind.NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    kind = trainer.get(3, 1)
    if not pieces or kind not in (1, 2):
        raise ValueError("neither a Unigram nor a BPE model" if pieces else "it has no pieces")
    return Model(pieces=pieces, unigram=kind == 1, prefix=bool(normalizer.get(3, 1)),
                 squeeze=bool(normalizer.get(4, 1)), charsmap=normalizer.get(2, b""))  # fmt: skip


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of every field of a protocol buffer message: whole numbers as int, all else as bytes."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= len(content) or shift > 63:
                raise ValueError("the file is cut or damaged")
            byte = content[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(content):
        tag = number()
        match tag & 7:
            case 0:
                yield tag >> 3, number()
                continue
            case 1:
                size = 8
            case 2:
                size = number()
            case 5:
                size = 4
            case _:
                raise ValueError("the file is damaged")
        if place + size > len(content):
            raise ValueError("the file is cut")
        yield tag >> 3, content[place : place + size]
        place += size
