"""A model in memory with all that using it takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.metadata import ModelMetadata


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be used, and the checkpoint directory that it came from."""

    directory: Path
    model: GPT
    tokenizer: Tokenizer
    runtime: Runtime
    metadata: ModelMetadata

    @property
    def room(self) -> int:
        """Return how many tokens of text fit the context beside the token that begins every window."""
        return self.model.config.context_length - len(self.tokenizer.bos_ids)
