"""The tokens that begin and end a text of an imported model, by what its files say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.tokenizer import DOCUMENT_MARKS, Tokenizer

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
# Classes of slow tokenizers that put bos_token before a text unless the file says otherwise.
_ADD_BEGIN = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast",
              "GemmaTokenizer", "GemmaTokenizerFast")  # fmt: skip


def token_names(*settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of bos_token and the others, each from the first of the documents (tokenizer_config.json ...) to
    name it."""
    found: dict[str, str] = {}
    for document in settings:
        for name in NAMES:
            token = document.get(name)
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str) and text:
                found.setdefault(name, text)
    return found


def begins_with(content: bytes, settings: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Return the token that transformers puts before every text by itself, if any."""
    said = settings.get("add_bos_token")
    if isinstance(said, bool):
        return names.get("bos_token") if said else None
    processor = json.loads(content).get("post_processor")
    for part in _processors(processor):
        if part.get("type") == "TemplateProcessing" and part.get("single"):
            first = part["single"][0].get("SpecialToken", {})
            return first.get("id")
    return names.get("bos_token") if settings.get("tokenizer_class") in _ADD_BEGIN and processor is None else None


def _processors(processor: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(processor, dict):
        yield processor
        for part in processor.get("processors") or []:
            yield from _processors(part)


def mark(
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    names: Mapping[str, str],
    *ids: Mapping[str, Any],
) -> Tokenizer:
    """Return the tokenizer with the begin and end tokens of the model.

    A text begins with what transformers puts before it, or with <|endoftext|> where the tokenizer has it: that stood
    before every document in training. It ends with eos_token and with each eos_token_id of generation_config.json and
    config.json (`ids`), and with <|endoftext|>.
    """
    content = tokenizer.plain_content
    try:
        begin = begins_with(content, settings, names)
    except (TypeError, KeyError, LookupError, AttributeError) as error:
        raise DataError(f"tokenizer.json: post_processor: {escape(str(error))}; the file is damaged") from None
    by_id = {index: name for name, index in tokenizer.specials.items()}
    document = json.loads(content)
    by_id = {index: token for token, index in _vocabulary(document).items()} | by_id
    known = set(by_id.values())
    own = next((name for name in DOCUMENT_MARKS if name in tokenizer.specials), None)
    ends = [names.get("eos_token")]
    for config in ids:
        given = config.get("eos_token_id")
        ends += [by_id.get(index) for index in (given if isinstance(given, list) else [given]) if type(index) is int]
    ends = list(dict.fromkeys(name for name in (*ends, own) if name in known))
    return tokenizer.with_marks(begin if begin in known else own, [name for name in ends if name])


def _vocabulary(document: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, list):
        return {piece[0]: index for index, piece in enumerate(vocabulary)}
    return dict(vocabulary)
