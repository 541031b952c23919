"""Weights on disk: whole in one file, or whatever another format makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gptcli.base import fsio
from gptcli.model.gpt import GPT
from gptcli.model.lora import WEIGHTS as ADAPTER_FILE
from gptcli.model.safetensors_io import files_of, read_tensors, write_tensors
from gptcli.train.metadata import read_metadata

MODEL_FILE = "model.safetensors"


class Weights(Protocol):
    """The storage of a model's trained weights in a checkpoint directory."""

    def write(self, model: GPT, directory: Path) -> None:
        """Write the weights into a new directory."""

    def read(self, model: GPT, directory: Path) -> None:
        """Put stored weights into the model. DataError where they do not fit."""


@runtime_checkable
class TrainedWeights(Weights, Protocol):
    """The storage of the weights that are trained, where others are not stored: of a model that processes have a part
    of each, one process writes them."""

    def write_trained(self, trained: Mapping[str, Tensor], model: GPT, directory: Path) -> None:
        """Write trained weights, whole, by their names in the model."""

    def read_trained(self, model: GPT, directory: Path) -> Mapping[str, Tensor]:
        """Return stored weights by their names in the model. DataError where they do not fit."""


class WholeWeights:
    """All weights in model.safetensors; a tied head is stored once, as the embedding."""

    def write(self, model: GPT, directory: Path) -> None:
        write_tensors(stored_weights(model), directory / MODEL_FILE)

    def read(self, model: GPT, directory: Path) -> None:
        shapes = {name: tensor.shape for name, tensor in stored_weights(model).items()}
        model.load_state_dict(read_tensors(directory / MODEL_FILE, shapes), strict=False)


def stored_weights(model: GPT) -> dict[str, torch.Tensor]:
    """Return the tensors of model.safetensors by name."""
    return {k: v for k, v in model.state_dict().items() if k != "head.weight" or not model.config.tie_embeddings}


def weights_sha256(directory: Path) -> str:
    """Return the hash of model.safetensors that the manifest states, else that of the file; where it lies there in
    parts, a hash of theirs."""
    files: dict[str, Any] = {}
    if (directory / fsio.MANIFEST).is_file():
        files = fsio.read_json(directory / fsio.MANIFEST).get("files", {})
    found = []
    for file in files_of(directory / MODEL_FILE):
        stated = files.get(file.name, {}).get("sha256")
        found.append(stated if isinstance(stated, str) else fsio.sha256(file))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def identity(checkpoint: Path) -> list[str]:
    """Return what identifies the weights of a checkpoint: their hash, of an adapter that of its base, too."""
    adapter = read_metadata(checkpoint).adapter
    if adapter is None:
        return [weights_sha256(checkpoint)]
    return [adapter.base_sha256, fsio.sha256(checkpoint / ADAPTER_FILE)]
