"""GPT and tokenizer -> a directory that AutoModelForCausalLM and AutoTokenizer of transformers load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import NumericalError
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer
from gptcli.interop.chat_template import chat_template
from gptcli.interop.configs import write_config
from gptcli.interop.families import Family
from gptcli.interop.hf_read import SINGLE
from gptcli.interop.names import Names, outgoing
from gptcli.model.gpt import GPT
from gptcli.model.safetensors_io import check_finite, write_tensors
from gptcli.train.metadata import ModelMetadata
from gptcli.train.weights import stored_weights


def write_directory(
    directory: Path, model: GPT, tokenizer: Tokenizer, metadata: ModelMetadata, family: Family, dtype: torch.dtype
) -> None:
    """All files but the model card. A classifier becomes the family's class for that."""
    begin = tokenizer.end_of_text
    ends = [] if begin is None else [begin]
    if metadata.conversation is not None:
        ends.append(metadata.conversation.end_id(tokenizer))
    ids = {"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends or None, "pad_token_id": begin}
    config = write_config(model.config, family) | ids | {"dtype": str(dtype).removeprefix("torch.")}
    if metadata.labels:
        config["architectures"] = [family.classifier]
        config["id2label"] = {str(index): label for index, label in enumerate(metadata.labels)}
        config["label2id"] = {label: index for index, label in enumerate(metadata.labels)}
    fsio.write_json(directory / "config.json", config)
    write_tensors(converted(model, family.whole(model.config), family.names, dtype), directory / SINGLE,
                  metadata={"format": "pt"})  # fmt: skip
    fsio.write_file(directory / "tokenizer.json", tokenizer.content)
    fsio.write_json(directory / "tokenizer_config.json", _tokenizer_config(model.config, tokenizer))
    if not metadata.labels:
        fsio.write_json(directory / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
    if metadata.conversation is not None:
        fsio.write_file(directory / "chat_template.jinja", chat_template(metadata.conversation, tokenizer))


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Of the class that takes tokenizer.json as it is: those named after a model rebuild it in transformers 5, with
    another split pattern."""
    document: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.end_of_text is not None:
        mark = tokenizer.decode([tokenizer.end_of_text])
        document |= {"bos_token": mark, "eos_token": mark, "pad_token": mark}
    return document


def converted(model: GPT, whole: ModelConfig, names: Names, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights under the names of another format; NumericalError where `dtype` is too small for one.

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
        if classifier and name == "head.weight":
            continue
        tensor = ours[name] if name in ours else torch.full(shape, float(not name.endswith("bias")))
        for theirs, piece in outgoing(name, tensor, whole, names):
            tensors[theirs] = piece.to(dtype)
    try:
        check_finite(tensors, str(dtype).removeprefix("torch."))
    except NumericalError as error:
        raise NumericalError(f"{error}; choose --dtype bfloat16 or float32") from None
    return tensors
