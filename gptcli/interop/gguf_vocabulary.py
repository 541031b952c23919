"""The tokenizer that a GGUF file carries <-> a tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data import tokenizer_file
from gptcli.data.tokenizer import PATTERNS, Tokenizer
from gptcli.interop import sentencepiece
from gptcli.interop.sentencepiece import Kind, Model, Piece

# What llama.cpp calls a split of text -> ours; `digits` is gpt2 after single digits.
SPLITS = {
    "gpt-2": "gpt2", "default": "gpt2", "olmo": "gpt2", "mpt": "gpt2", "jais": "gpt2", "phi-2": "gpt2",
    "smollm": "digits", "starcoder": "digits", "refact": "digits", "codeshell": "digits", "command-r": "digits",
    "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3", "dbrx": "llama3", "smaug-bpe": "llama3",
    "falcon3": "llama3", "pixtral": "llama3",
    "qwen2": "qwen2", "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "hunyuan": "qwen2",
}  # fmt: skip
# Splits before which llama.cpp puts bos_token where the file says nothing of it (llama-vocab.cpp).
BEGUN = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # whose own tokenizers compose characters first (NFC), as llama.cpp does not


def read_vocabulary(facts: Mapping[str, Any], place: str) -> Tokenizer:
    """Read the tokenizer in a file's metadata; DataError where there is none that can be read."""
    kind = facts.get("tokenizer.ggml.model")
    tokens = _list(facts, "tokens", str, place=place)
    if not tokens:
        raise DataError(f"{place}: no tokenizer in it; get a file that has one")
    types = _list(facts, "token_type", int, place=place) or [Kind.NORMAL] * len(tokens)
    scores = _list(facts, "scores", float, int, place=place) or [0.0] * len(tokens)
    for what, found in (("types", types), ("scores", scores)):
        if len(found) != len(tokens):
            raise DataError(f"{place}: {len(found)} {what} of {len(tokens)} tokens; the file is damaged")
    begin = facts.get("tokenizer.ggml.bos_token_id") if adds_begin(facts) else None
    begin = begin if type(begin) is int and 0 <= begin < len(tokens) else None
    match kind:
        case "gpt2":
            content = _byte_level(facts, tokens, types, place, begin)
        case "llama":
            pieces = [Piece(*piece) for piece in zip(tokens, map(float, scores), types, strict=True)]
            prefix = facts.get("tokenizer.ggml.add_space_prefix", True)
            content = sentencepiece.tokenizer_json(Model(pieces=pieces, prefix=bool(prefix)), begin)
        case _:
            raise DataError(f"{place}: a tokenizer of the kind {escape(str(kind))}; gptcli reads gpt2 and llama from a "
                            "GGUF file; import the model's Hugging Face directory")  # fmt: skip
    return Tokenizer(content, name=place)


def adds_begin(facts: Mapping[str, Any]) -> bool:
    """Return whether llama.cpp puts bos_token before every text."""
    unsaid = facts.get("tokenizer.ggml.model") == "llama" or facts.get("tokenizer.ggml.pre") in BEGUN
    return bool(facts.get("tokenizer.ggml.add_bos_token", unsaid))


def _list(facts: Mapping[str, Any], name: str, *kinds: type, place: str) -> list[Any]:
    """Return a list of the metadata, empty where there is none; DataError names one of anything else."""
    key = f"tokenizer.ggml.{name}"
    found = facts.get(key, [])
    if not isinstance(found, list) or any(type(each) not in kinds for each in found):
        raise DataError(f"{place}: {key}: want a list of {kinds[0].__name__}; the file is damaged")
    return found


def _byte_level(
    facts: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], place: str, begin: int | None
) -> bytes:
    pre = facts.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in SPLITS:
        raise DataError(f"{place}: text is split as {escape(str(pre))}; gptcli knows {', '.join(SPLITS)} "
                        "in a GGUF file; import the model's Hugging Face directory")  # fmt: skip
    added = [
        {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind != Kind.USER_DEFINED}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN)
    ]  # fmt: skip
    unused = {index for index, kind in enumerate(types) if kind == Kind.UNUSED}
    # Control tokens too: the tokenizers library gives those that are not there ids of its own.
    vocabulary = {token: index for index, token in enumerate(tokens) if index not in unused}
    merges = _list(facts, "merges", str, place=place)
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in COMPOSED else None,
        "pre_tokenizer": split(SPLITS[pre]),
        "post_processor": None if begin is None else sentencepiece.begins_text(tokens[begin], begin),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": SPLITS[pre] == "llama3", "vocab": vocabulary,
                  "merges": [merge.split(" ", 1) for merge in merges]},
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file: `scores` where they are merged by score, as SentencePiece does, else merges."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]


def for_gguf(document: Mapping[str, Any], tokenizer: Tokenizer, size: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer.json with a token for each of `size` ids; DataError where llama.cpp has no
    such tokenizer."""
    model = document["model"]
    falls_back = bool(model.get("byte_fallback"))
    if model.get("type", "BPE") != "BPE" or not (tokenizer_file.of_bytes(document) or falls_back):
        raise DataError("the tokenizer is of a kind that llama.cpp does not have; export with --to hf")
    words = tokenizer_file.added_tokens(document, special=False)
    by_id = {index: token for token, index in (model["vocab"] | words | tokenizer.specials).items()}
    known = dict.fromkeys(tokenizer.specials.values(), Kind.CONTROL) | dict.fromkeys(words.values(), Kind.USER_DEFINED)
    if falls_back:
        known |= {index: Kind.BYTE for index, token in by_id.items() if re.fullmatch("<0x[0-9A-F]{2}>", token)}
    if model.get("unk_token") in tokenizer.specials:
        known[tokenizer.specials[model["unk_token"]]] = Kind.UNKNOWN
    kinds = [known.get(index, Kind.NORMAL if index in by_id else Kind.UNUSED) for index in range(size)]
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(size)]
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if not falls_back:
        return Vocabulary(tokens, [int(kind) for kind in kinds], [" ".join(pair) for pair in pairs], [])
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    scores = [-float(ranks[token]) if token in ranks else 0.0 for token in tokens]
    return Vocabulary(tokens, [int(kind) for kind in kinds], [], scores)


def split(name: str) -> dict[str, Any]:
    """Return the pre_tokenizer of a tokenizer.json that cuts text as `name` does."""
    regex = PATTERNS.get(name)
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex is None}
    if regex is not None:
        first = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    elif name == "digits":
        first = {"type": "Digits", "individual_digits": True}
    else:
        return bytes_of
    return {"type": "Sequence", "pretokenizers": [first, bytes_of]}
