"""A directory as transformers writes it, all of it: config.json, weights, tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.interop.configs import dropped_keys, family_of, read_config
from gptcli.interop.hf_read import inside, read_document, read_model
from gptcli.interop.hf_tokenizer import read_tokenizer
from gptcli.interop.pretrained import Pretrained
from gptcli.interop.special_tokens import mark, token_names

# Files beside weights and tokenizer.json that an export gives back; a chat template is in one of three places.
BESIDE = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
          "added_tokens.json", "chat_template.jinja", "chat_template.json")  # fmt: skip
MAX_BYTES = 1 << 26


def read_hf(directory: Path) -> Pretrained:
    """Return all but the weights of a directory; DataError for the first thing that cannot be had, the architecture
    before the tokenizer."""
    config = read_document(directory)
    place = escape(str(directory / "config.json"))
    read_config(config, family_of(config, place), place)
    origin = dict(_texts(directory))
    settings = _object(origin, "tokenizer_config.json")
    names = token_names(settings, _object(origin, "special_tokens_map.json"))
    tokenizer = read_tokenizer(directory)
    return Pretrained(
        config=config,
        tokenizer=mark(tokenizer, settings, names, _object(origin, "generation_config.json"), config),
        template=_template(origin, settings),
        token_names=names,
        origin=origin,
        left_behind=[f"{place}: {left}" for left in dropped_keys(config)],
        read_model=lambda: read_model(directory, config),
    )


def _texts(directory: Path) -> list[tuple[str, str]]:
    found = []
    for name in BESIDE:
        path = inside(directory, name)
        if path is None:
            continue
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{escape(str(path))}: larger than {MAX_BYTES >> 20} MiB; this is no settings file")
        if name.endswith(".json"):
            fsio.read_json(path)
        try:
            found.append((name, path.read_bytes().decode()))
        except UnicodeDecodeError as error:
            raise DataError(f"{escape(str(path))}: not UTF-8 ({error.reason}); the file is damaged") from None
    return found


def _object(origin: Mapping[str, str], name: str) -> dict[str, Any]:
    document = json.loads(origin.get(name, "{}"))
    return document if isinstance(document, dict) else {}


def _template(origin: Mapping[str, str], settings: Mapping[str, Any]) -> str | None:
    """Return the chat template, of several the one that is named default."""
    if "chat_template.jinja" in origin:
        return origin["chat_template.jinja"]
    given = _object(origin, "chat_template.json").get("chat_template", settings.get("chat_template"))
    if isinstance(given, list):
        by_name = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = by_name.get("default")
    return given if isinstance(given, str) else None
