"""GPT and tokenizer -> a GGUF file for llama.cpp, through the package gguf."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gptcli.base.errors import ConfigError, DataError
from gptcli.config.model import ModelConfig
from gptcli.data import tokenizer_file
from gptcli.data.conversation import Conversation
from gptcli.data.template import Template
from gptcli.data.tokenizer import PATTERNS, Tokenizer
from gptcli.interop.chat_template import chat_template
from gptcli.interop.configs import whole
from gptcli.interop.gguf_names import Architecture
from gptcli.interop.gguf_shape import FREQUENCIES, frequency_divisors, shape_facts
from gptcli.interop.gguf_vocabulary import for_gguf
from gptcli.interop.hf_write import converted, token_ids
from gptcli.interop.special_tokens import begins_with, token_names
from gptcli.model.gpt import GPT
from gptcli.train.metadata import ModelMetadata

# dtype -> its names in gguf: of a tensor's type, and of a file's
TYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
IN_FLOAT32 = ("position_embd", "norm")  # llama.cpp adds and scales in float32

# Split pattern -> the name that llama.cpp knows it under.
PRE_TOKENIZERS = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "digits": "smollm"}


def gguf_package() -> ModuleType:
    """Return the package gguf; ConfigError says how to get it."""
    try:
        import gguf
    except ImportError:
        raise ConfigError("--to gguf: the package gguf is not installed; pip install 'gptcli[gguf]'") from None
    return gguf


def write_gguf(
    path: Path, model: GPT, tokenizer: Tokenizer, metadata: ModelMetadata, architecture: Architecture, dtype: str
) -> None:
    """Write the whole model to one file. Matrices are stored as `dtype`, or float16 where q8_0 does not divide their
    rows; the rest is float32."""
    gguf = gguf_package()
    config = whole(model.config, architecture.family)
    tensors = converted(model, config, architecture.names, torch.float32)
    if config.rope_scaling.kind == "llama3":
        tensors[FREQUENCIES] = frequency_divisors(config)
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        _add_shape(writer, config, architecture)
        writer.add_file_type(getattr(gguf.LlamaFileType, TYPES[dtype][1]))
        if dtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(writer, tokenizer, config, metadata)
        for name, tensor in tensors.items():
            kind = "F32" if tensor.ndim < 2 or any(part in name for part in IN_FLOAT32) else TYPES[dtype][0]
            if kind == "Q8_0" and tensor.shape[-1] % 32:
                kind = "F16"
            quantization = getattr(gguf.GGMLQuantizationType, kind)
            writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), quantization), raw_dtype=quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_shape(writer: Any, config: ModelConfig, architecture: Architecture) -> None:
    for key, value in shape_facts(config, architecture).items():
        match value:
            case bool():
                writer.add_bool(f"{architecture.name}.{key}", value)
            case int():
                writer.add_uint32(f"{architecture.name}.{key}", value)
            case float():
                writer.add_float32(f"{architecture.name}.{key}", value)
            case str():
                writer.add_string(f"{architecture.name}.{key}", value)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, config: ModelConfig, metadata: ModelMetadata) -> None:
    """Write the tokens, one for each row of the embedding, with merges or scores, and those that begin and end a
    text."""
    document = json.loads(tokenizer.plain_content)
    vocabulary = for_gguf(document, tokenizer, config.vocab_size or 0)
    writer.add_tokenizer_model("llama" if vocabulary.scores else "gpt2")
    writer.add_tokenizer_pre("default" if vocabulary.scores else PRE_TOKENIZERS[split_pattern(tokenizer)])
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(bool(tokenizer.prefix))
    else:
        writer.add_token_merges(vocabulary.merges)
    ids = token_ids(tokenizer, metadata)
    begin, ends = ids.get("bos_token_id"), ids["eos_token_id"]
    ends = ends if isinstance(ends, list) and ends else [ends]
    writer.add_add_bos_token(_adds_begin(tokenizer, metadata))
    if begin is not None:
        writer.add_bos_token_id(begin)
    if ends[0] is not None:
        writer.add_eos_token_id(ends[0])
    if metadata.origin and ids.get("pad_token_id") is not None:
        writer.add_pad_token_id(ids["pad_token_id"])
    match metadata.conversation:
        case Conversation() as form:
            writer.add_eot_token_id(form.end_id(tokenizer))
            writer.add_chat_template(chat_template(form, tokenizer))
        case Template() as form:
            if len(ends) > 1:
                writer.add_eot_token_id(ends[1])
            writer.add_chat_template(form.source)


def _adds_begin(tokenizer: Tokenizer, metadata: ModelMetadata) -> bool:
    """Return whether every text begins with bos_token: of an imported model where its own program put it there."""
    if not metadata.origin:
        return tokenizer.begin is not None
    settings = json.loads(metadata.origin.get("tokenizer_config.json", "{}"))
    return begins_with(tokenizer.plain_content, settings, token_names(settings)) is not None


def split_pattern(tokenizer: Tokenizer) -> str:
    """Return the name of the pattern that cuts text before it is encoded; DataError where llama.cpp has none for it."""
    parts = tokenizer_file.parts(json.loads(tokenizer.plain_content), "pre_tokenizer")
    regexes = [part["pattern"].get("Regex") for part in parts if part["type"] == "Split"]
    digits = any(part["type"] == "Digits" for part in parts)
    if not regexes and parts[-1].get("use_regex", True):
        return "digits" if digits else "gpt2"
    for name, regex in PATTERNS.items():
        if regexes == [regex] and not digits and not parts[-1].get("use_regex", True):
            return name
    raise DataError("the tokenizer's split pattern is one that llama.cpp does not have; export with --to hf")


def unsupported_tokenizer_feature(tokenizer: Tokenizer) -> str | None:
    """Return what of the tokenizer no GGUF file can say, or None."""
    normalizer = tokenizer_file.parts(json.loads(tokenizer.plain_content), "normalizer")
    composes = any(part["type"] == "NFC" for part in normalizer)
    return "llama.cpp does not compose characters (NFC) before it encodes, as this tokenizer does" if composes else None
