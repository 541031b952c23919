"""GPT and tokenizer -> a directory that AutoModelForCausalLM and AutoTokenizer of transformers load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import DataError, NumericalError
from gptcli.config.model import ModelConfig
from gptcli.data.conversation import Conversation
from gptcli.data.tokenizer import Tokenizer
from gptcli.interop.chat_template import chat_template
from gptcli.interop.configs import family_of, read_config, whole, write_config
from gptcli.interop.family import Family
from gptcli.interop.hf_read import SINGLE
from gptcli.interop.tensor_names import Names, outgoing
from gptcli.model.gpt import GPT
from gptcli.model.safetensors_io import check_finite, write_tensors
from gptcli.train.metadata import ModelMetadata
from gptcli.train.weights import stored_weights


def write_directory(
    directory: Path, model: GPT, tokenizer: Tokenizer, metadata: ModelMetadata, family: Family, dtype: torch.dtype
) -> None:
    """Write every file but the model card. A classifier becomes the family's class for that.

    What an imported model came with is written as it was, as far as it still holds.
    """
    ids = token_ids(tokenizer, metadata)
    config = _config(model, metadata, family)
    own = isinstance(metadata.conversation, Conversation)
    config = {**config, **ids} if own else {**ids, **config}
    config |= {"dtype": str(dtype).removeprefix("torch.")}
    if metadata.labels:
        config["architectures"] = [family.classifier]
        config["id2label"] = {str(index): label for index, label in enumerate(metadata.labels)}
        config["label2id"] = {label: index for index, label in enumerate(metadata.labels)}
    fsio.write_json(directory / "config.json", config)
    write_tensors(converted(model, whole(model.config, family), family.names, dtype), directory / SINGLE,
                  metadata={"format": "pt"})  # fmt: skip
    fsio.write_file(directory / "tokenizer.json", tokenizer.plain_content)
    beside = dict(metadata.origin) or {"tokenizer_config.json": _tokenizer_config(model.config, tokenizer)}
    if isinstance(metadata.conversation, Conversation):
        beside = dict(_without_template(beside))
        beside["chat_template.jinja"] = chat_template(metadata.conversation, tokenizer)
    given = _object(beside.get("generation_config.json"))
    said = {name: value for name, value in ids.items() if value is not None}
    if {**given, **said} != given or "generation_config.json" not in beside:
        beside["generation_config.json"] = _text({**given, **said})
    for name, text in sorted(beside.items()):
        if name != "config.json" and not (metadata.labels and name == "generation_config.json"):
            fsio.write_file(directory / name, text)


def _config(model: GPT, metadata: ModelMetadata, family: Family) -> dict[str, Any]:
    """Return the config.json that the model came with where it still says the same, else a new one."""
    came = _object(metadata.origin.get("config.json"))
    try:
        if came and family_of(came, "") is family and read_config(came, family, "") == model.config:
            return {key: value for key, value in came.items() if key not in ("torch_dtype", "dtype")}
    except DataError:  # of a class that goes out as another one
        pass
    return write_config(model.config, family)


def token_ids(tokenizer: Tokenizer, metadata: ModelMetadata) -> dict[str, Any]:
    """Return bos_token_id, eos_token_id and pad_token_id: those the model came with, and the end of a turn of our own
    form."""
    form, names = metadata.conversation, ("bos_token_id", "eos_token_id", "pad_token_id")
    ends: Any = list(tokenizer.ends)
    found: dict[str, Any] = {"bos_token_id": tokenizer.begin, "pad_token_id": tokenizer.end_of_text}
    if metadata.origin:
        came = [_object(metadata.origin.get(file)) for file in ("config.json", "generation_config.json")]
        found = {name: document[name] for document in came for name in names if name in document}
        ends = found.get("eos_token_id", ends)
    if isinstance(form, Conversation):
        ends = list(dict.fromkeys([*(ends if isinstance(ends, list) else [ends]), form.end_id(tokenizer)]))
    if isinstance(ends, list) and (not metadata.origin or isinstance(form, Conversation)):
        ends = ends[0] if len(ends) == 1 else ends or None
    return {**found, "eos_token_id": ends}


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> str:
    """Name the tokenizer class that loads tokenizer.json as it is: in transformers 5 those named after a model rebuild
    it with another split pattern."""
    document: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.begin is not None:
        document["bos_token"] = tokenizer.decode([tokenizer.begin])
    if tokenizer.end is not None:
        document["eos_token"] = document["pad_token"] = tokenizer.decode([tokenizer.end])
    return _text(document)


def _without_template(beside: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the files without a chat template that no longer holds."""
    for name, text in beside.items():
        if name.startswith("chat_template."):
            continue
        if name == "tokenizer_config.json" and "chat_template" in (document := _object(text)):
            text = _text({key: value for key, value in document.items() if key != "chat_template"})
        yield name, text


def _object(text: str | None) -> dict[str, Any]:
    document = json.loads(text) if text else {}
    return document if isinstance(document, dict) else {}


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def converted(model: GPT, whole: ModelConfig, names: Names, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights under the names of another format; NumericalError where `dtype` is too small for one.

    `whole` is the config as the other format sees it: where it has a scale or a bias and the model none, that is one
    or zero. The head of a language model is left out beside that of a classifier.
    """
    ours = {name: tensor.detach() for name, tensor in stored_weights(model).items()}
    classifier = model.label_head is not None
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in stored_weights(GPT(whole)).items()}
    shapes |= {name: tensor.shape for name, tensor in ours.items() if name.startswith("label_head")}
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if classifier and name.startswith("head."):
            continue
        tensor = ours[name] if name in ours else torch.full(shape, float(not name.endswith("bias")))
        for theirs, piece in outgoing(name, tensor, whole, names):
            tensors[theirs] = piece.to(dtype)
    try:
        check_finite(tensors, str(dtype).removeprefix("torch."))
    except NumericalError as error:
        raise NumericalError(f"{error}; choose --dtype bfloat16 or float32") from None
    return tensors
