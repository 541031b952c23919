"""A GGUF file -> a pretrained model: its weights dequantised, with the tokenizer and the template that it carries.

The package gguf reads the file. What its metadata says is put into the words of config.json, so that a family is read
the same way from both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.config.model import ModelConfig
from gptcli.interop.configs import write_config
from gptcli.interop.gguf_names import ARCHITECTURES, Architecture
from gptcli.interop.gguf_shape import FREQUENCIES, read_shape
from gptcli.interop.gguf_vocabulary import adds_begin, read_vocabulary
from gptcli.interop.pretrained import Pretrained
from gptcli.interop.special_tokens import mark, token_names
from gptcli.interop.tensor_names import incoming
from gptcli.model.gpt import GPT
from gptcli.model.safetensors_io import check_finite
from gptcli.train.weights import stored_weights

MAGIC = b"GGUF"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")

OTHERS = {
    ".bin": "a file of weights: pickled by torch, or llama2.c's",
    ".pt": "a file that torch pickled, as nanoGPT and Meta write them",
    ".pth": "a file that torch pickled, as nanoGPT and Meta write them",
    ".ckpt": "a file that torch pickled",
    ".safetensors": "weights alone; give the directory that holds them with config.json and the tokenizer",
    ".zip": "an archive; unpack it",
}


def read_gguf(path: Path) -> Pretrained:
    """Return all but the weights of a file; DataError for what it is instead, or for what of it cannot be had."""
    place = escape(str(path))
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            known = OTHERS.get(path.suffix, "neither a directory of transformers nor a GGUF file")
            raise DataError(f"{place}: {known}; with transformers, load it and save_pretrained a directory, or with "
                            "llama.cpp's convert_hf_to_gguf.py make a GGUF file")  # fmt: skip
    if SHARD.search(path.name):
        raise DataError(f"{place}: one of several parts; join them with llama.cpp's llama-gguf-split --merge")
    gguf = gguf_package()
    try:
        reader = gguf.GGUFReader(path)
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, TypeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{place}: not a whole GGUF file ({escape(str(error))}); it is cut or damaged") from None
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    architecture = _architecture(facts, place)
    config = read_shape(facts, tensors, architecture, place)
    vocabulary = read_vocabulary(facts, place)
    names, settings = _settings(facts)
    ends = {"eos_token_id": [facts[key] for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
                             if type(facts.get(key)) is int]}  # fmt: skip
    tokenizer = mark(vocabulary, settings, names, ends)
    template = facts.get("tokenizer.chat_template")
    origin = {"tokenizer_config.json": json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
              "generation_config.json": json.dumps(_generation(facts, ends), indent=2) + "\n"}  # fmt: skip
    if isinstance(template, str):
        origin["chat_template.jinja"] = template
    return Pretrained(
        config=write_config(config, architecture.family),
        tokenizer=tokenizer,
        template=template if isinstance(template, str) else None,
        token_names=names,
        origin=origin,
        left_behind=[],
        read_model=lambda: _read_model(config, architecture, tensors, place),
    )


def gguf_package() -> Any:
    """Return the package gguf; ConfigError says how to get it."""
    try:
        import gguf
    except ImportError:
        raise ConfigError("a GGUF file: the package gguf is not installed; pip install 'gptcli[gguf]'") from None
    return gguf


def _architecture(facts: Mapping[str, Any], place: str) -> Architecture:
    name = facts.get("general.architecture")
    for architecture in ARCHITECTURES.values():
        if architecture.name == name:
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES.values())
    raise DataError(f"{place}: architecture {escape(str(name))}; gptcli reads {known}")


def _settings(facts: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return names of tokens, and tokenizer_config.json."""
    tokens = facts.get("tokenizer.ggml.tokens", [])
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    kinds = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in kinds.items():
        index = facts.get(f"tokenizer.ggml.{key}_token_id")
        if type(index) is int and 0 <= index < len(tokens):
            settings[name] = tokens[index]
    settings["add_bos_token"] = adds_begin(facts)
    return token_names(settings), settings


def _generation(facts: Mapping[str, Any], ends: Mapping[str, Any]) -> dict[str, Any]:
    """Make generation_config.json: the ends of a text, and the makers' sampling options where the file has them."""
    keys = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
    drawing = {theirs: facts[f"general.sampling.{key}"] for key, theirs in keys.items()
               if isinstance(facts.get(f"general.sampling.{key}"), (int, float))}  # fmt: skip
    begin = facts.get("tokenizer.ggml.bos_token_id")
    return {
        **({} if begin is None else {"bos_token_id": begin}),
        **ends,
        **({"do_sample": True} if drawing else {}),
        **drawing,
    }


def _read_model(shape: ModelConfig, architecture: Architecture, tensors: Mapping[str, Any], place: str) -> GPT:
    """Return the model, its weights dequantised to float32; DataError names what is missing, extra or of another
    shape."""
    with torch.device("meta"):
        model = GPT(shape)
    wanted = {name: tensor.shape for name, tensor in stored_weights(model).items()}
    parts = {part.name: part.shape(size) for name, size in wanted.items()
             for part in architecture.names.parts(name, shape)}  # fmt: skip
    if missing := sorted(set(parts) - set(tensors)):
        raise DataError(
            f"{place}: tensor {escape(missing[0])} is missing ({len(missing)} in all); the file is not complete"
        )
    if extra := sorted(set(tensors) - set(parts) - {FREQUENCIES}):
        raise DataError(
            f"{place}: tensor {escape(extra[0])} ({len(extra)} in all) has no place in a {architecture.name}"
        )
    read = _reader(tensors, parts, place)
    model.take({name: incoming(name, read, shape, architecture.names) for name in wanted})
    return model.eval()


def _reader(tensors: Mapping[str, Any], shapes: Mapping[str, torch.Size], place: str) -> Callable[[str], Tensor]:
    gguf = gguf_package()

    def read(name: str) -> Tensor:
        stored = tensors[name]
        try:
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            kind = stored.tensor_type.name
            raise DataError(f"{place}: tensor {escape(name)} has the type {kind}, which the package gguf does not "
                            "dequantise; get the file in F16, Q8_0 or a K quant") from None  # fmt: skip
        tensor = torch.from_numpy(np.array(values, dtype=np.float32))
        if tensor.shape != shapes[name]:
            raise DataError(f"{place}: tensor {escape(name)} has shape {tuple(tensor.shape)}, want "
                            f"{tuple(shapes[name])} by the metadata")  # fmt: skip
        check_finite({name: tensor}, place)
        return tensor

    return read
