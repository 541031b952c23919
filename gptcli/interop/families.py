"""The table of families: the classes of transformers that model.GPT can hold, each a row that is read both ways."""

from __future__ import annotations

from gptcli.interop.family import Family
from gptcli.interop.gemma_families import GEMMA, GEMMA2, GEMMA3
from gptcli.interop.gpt_families import BLOOM, GPT2, GPT_NEO, GPT_NEOX, GPTJ, OPT, PHI
from gptcli.interop.llama_families import (
    GRANITE,
    LLAMA,
    MISTRAL,
    NANOCHAT,
    OLMO,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
    STABLELM,
    STARCODER2,
)

__all__ = ["FAMILIES", "GPT2", "LLAMA", "NANOCHAT", "QWEN2", "QWEN3", "Family"]

# In the order in which a model is exported as the first class that holds it.
_ROWS = (GPT2, LLAMA, QWEN2, QWEN3, NANOCHAT, MISTRAL, SMOLLM3, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO, OLMO2, GRANITE,
         STABLELM, STARCODER2, GPT_NEOX, GPT_NEO, GPTJ, OPT, PHI, BLOOM)  # fmt: skip
FAMILIES = {family.architecture: family for family in _ROWS}
CLASSIFIERS = {family.classifier: family for family in _ROWS if family.classifier}
