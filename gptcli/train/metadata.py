"""config.json of a checkpoint: the shape of its model and what that was tuned for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.config.finetune import Pooling
from gptcli.config.model import ModelConfig
from gptcli.data.template import Form, form_of

FORMAT, VERSION = "gptcli-checkpoint", 1
ORIGIN_FILE = "origin.json"


@dataclass(frozen=True)
class Adapter:
    """The base checkpoint that a LoRA adapter applies to."""

    base_path: str  # a checkpoint, relative to the adapter's own directory
    base_sha256: str  # of its model.safetensors


@dataclass(frozen=True)
class ModelMetadata:
    """The purpose that a model was tuned for beside text: the labels of its classification head, which tokens are read
    for them, and the form of its conversations."""

    labels: tuple[str, ...] = ()
    conversation: Form | None = None
    adapter: Adapter | None = None
    pooling: Pooling = "last"
    origin: Mapping[str, str] = field(default_factory=dict)  # files that an imported model came with, by name

    def as_json(self) -> dict[str, Any]:
        """Return its part of config.json; empty for a model of text."""
        given: dict[str, Any] = {"labels": list(self.labels), "pooling": self.pooling} if self.labels else {}
        if self.conversation is not None:
            given["conversation"] = self.conversation.as_json()
        if self.adapter is not None:
            given["base"] = {"path": self.adapter.base_path, "sha256": self.adapter.base_sha256}
        return given


def read_config(directory: Path) -> ModelConfig:
    """Read the model config of a checkpoint directory."""
    document = _read_document(directory)
    try:
        config = ModelConfig.from_json(document["model"])
        if type(config.vocab_size) is not int:
            raise TypeError("vocab_size is missing")
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise _damaged(directory / "config.json", error) from None
    return config


def read_metadata(directory: Path) -> ModelMetadata:
    """Read what the model of a checkpoint directory was tuned for."""
    document = _read_document(directory)
    labels, conversation = document.get("labels", []), document.get("conversation")
    try:
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("labels must be a list of names")
        form = None if conversation is None else form_of(conversation)
        base = document.get("base")
        adapter = None if base is None else Adapter(str(base["path"]), str(base["sha256"]))
        pooling = document.get("pooling", "last")
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}")
        return ModelMetadata(tuple(labels), form, adapter, pooling, _read_origin(directory))
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(directory / "config.json", error) from None


def _read_origin(directory: Path) -> dict[str, str]:
    path = directory / ORIGIN_FILE
    document = fsio.read_json(path) if path.is_file() else {}
    if not isinstance(document, dict) or not all(isinstance(text, str) for text in document.values()):
        raise _damaged(path, ValueError("want the text of each file"))
    return document


def _read_document(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    document = fsio.read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        theirs = isinstance(document, dict) and ("architectures" in document or "model_type" in document)
        mend = f"; bring the model in first: gptcli import {escape(str(directory))} -o RUN" if theirs else ""
        raise DataError(f"{escape(str(path))}: not the config of a gptcli checkpoint{mend}")
    if document.get("version") != VERSION:
        raise DataError(
            f"{escape(str(path))}: version {escape(str(document.get('version')))}; this gptcli reads {VERSION}"
        )
    return document


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{escape(str(path))}: {escape(str(error))}; the checkpoint is damaged")
