"""GPT and tokenizer -> a GGUF file for llama.cpp, through the package gguf."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gptcli.base.errors import ConfigError, DataError
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import PATTERNS, Tokenizer
from gptcli.interop.chat_template import chat_template
from gptcli.interop.families import GPT2, LLAMA, QWEN3, Family
from gptcli.interop.hf_write import converted
from gptcli.interop.names import Names
from gptcli.model.gpt import GPT
from gptcli.train.metadata import ModelMetadata

_OUTSIDE = {
    "embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
}
_INSIDE = {
    "attention_norm": ("attn_norm",),
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.projection": ("attn_output",),
    "attention.query_norm": ("attn_q_norm",),
    "attention.key_norm": ("attn_k_norm",),
    "mlp_norm": ("ffn_norm",),
    "mlp.up": ("ffn_gate", "ffn_up"),
    "mlp.projection": ("ffn_down",),
}
_GPT2_INSIDE = {**_INSIDE, "attention.qkv": ("attn_qkv",), "mlp.up": ("ffn_up",)}


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp: it computes what a class of transformers does."""

    name: str
    family: Family
    names: Names


ARCHITECTURES = {
    architecture.family.architecture: architecture
    for architecture in (
        Architecture("gpt2", GPT2, Names(outside=_OUTSIDE, block="blk.{}.", inside=_GPT2_INSIDE)),
        Architecture("llama", LLAMA, Names(outside=_OUTSIDE, block="blk.{}.", inside=_INSIDE, rotation="pairs")),
        Architecture("qwen3", QWEN3, Names(outside=_OUTSIDE, block="blk.{}.", inside=_INSIDE)),
    )
}

ACTIVATIONS = ("gelu", "swiglu")  # the only ones in those architectures

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
    """The package gguf; ConfigError says how to get it."""
    try:
        import gguf
    except ImportError:
        raise ConfigError("--to gguf: the package gguf is not installed; pip install 'gptcli[gguf]'") from None
    return gguf


def write_gguf(
    path: Path, model: GPT, tokenizer: Tokenizer, metadata: ModelMetadata, architecture: Architecture, dtype: str
) -> None:
    """The whole model in one file. Matrices are of `dtype`, in rows that q8_0 does not divide float16; the rest is
    float32."""
    gguf = gguf_package()
    whole = architecture.family.whole(model.config)
    tensors = converted(model, whole, architecture.names, torch.float32)
    pre = PRE_TOKENIZERS[split_pattern(tokenizer)]
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        _add_shape(writer, whole, architecture.family)
        writer.add_file_type(getattr(gguf.LlamaFileType, TYPES[dtype][1]))
        if dtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(writer, tokenizer, whole, metadata, pre)
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


def _add_shape(writer: Any, config: ModelConfig, family: Family) -> None:
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(config.num_heads)
    writer.add_vocab_size(config.vocab_size)
    if not family.rotary:
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, config: ModelConfig, metadata: ModelMetadata, pre: str) -> None:
    """Tokens, one for each row of the embedding, and merges."""
    types = gguf_package().TokenType
    document = json.loads(tokenizer.content)["model"]
    by_id = {index: token for token, index in (document["vocab"] | tokenizer.specials).items()}
    controls = set(tokenizer.specials.values())
    tokens, kinds = [], []
    for index in range(config.vocab_size or 0):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        kinds.append(types.CONTROL if index in controls else types.NORMAL if index in by_id else types.UNUSED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    begin = tokenizer.end_of_text
    writer.add_add_bos_token(begin is not None)
    if begin is not None:
        writer.add_bos_token_id(begin)
        writer.add_eos_token_id(begin)
    if metadata.conversation is not None:
        writer.add_eot_token_id(metadata.conversation.end_id(tokenizer))
        writer.add_chat_template(chat_template(metadata.conversation, tokenizer))


def split_pattern(tokenizer: Tokenizer) -> str:
    """The name of the pattern that cuts text before it is encoded; DataError where llama.cpp has none for it."""
    splitter = json.loads(tokenizer.content)["pre_tokenizer"]
    parts = splitter.get("pretokenizers", [splitter])
    regexes = [part["pattern"].get("Regex") for part in parts if part["type"] == "Split"]
    digits = any(part["type"] == "Digits" for part in parts)
    if not regexes and parts[-1].get("use_regex", True):
        return "digits" if digits else "gpt2"
    for name, regex in PATTERNS.items():
        if regexes == [regex] and not digits and not parts[-1].get("use_regex", True):
            return name
    raise DataError("the tokenizer's split pattern is one that llama.cpp does not have; export with --to hf")


def unheld(tokenizer: Tokenizer) -> str | None:
    """What of the tokenizer no GGUF file can say, or None."""
    normalizer = json.loads(tokenizer.content).get("normalizer")
    return (
        "llama.cpp does not compose characters (NFC) before it encodes, as this tokenizer does" if normalizer else None
    )
