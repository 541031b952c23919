"""The architectures of llama.cpp whose files are read and written, each with its names of tensors."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.interop.families import GPT2, LLAMA, QWEN2, QWEN3
from gptcli.interop.family import Family
from gptcli.interop.names import Names

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
        Architecture("qwen2", QWEN2, Names(outside=_OUTSIDE, block="blk.{}.", inside=_INSIDE)),
    )
}
