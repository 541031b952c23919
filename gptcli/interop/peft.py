"""Adapters as the PEFT library stores them: adapter_config.json and adapter_model.safetensors.

Their names are those that the model has as a class of transformers, so that PEFT loads them on an exported base. A
matrix of ours that is several of theirs, stacked, has one A: each of theirs gets a copy of it and its own rows of B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.config.finetune import LoraConfig
from gptcli.config.model import ModelConfig
from gptcli.interop.configs import problems
from gptcli.interop.families import FAMILIES, GPT2, LLAMA, NANOCHAT, QWEN3
from gptcli.interop.tensor_names import Names, incoming, outgoing
from gptcli.model.gpt import GPT
from gptcli.model.lora import MODULES, WEIGHTS, adapted, trained_weights
from gptcli.model.safetensors_io import check_finite, read_tensors, tensor_shapes, write_tensors

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterWeights:
    """The adapters of a model in training, as train.weights.Weights: the base itself is not stored."""

    config: LoraConfig
    base_path: str  # of the base checkpoint, relative to the adapter's directory

    def write(self, model: GPT, directory: Path) -> None:
        self.write_trained(trained_weights(model), model, directory)

    def read(self, model: GPT, directory: Path) -> None:
        with torch.no_grad():
            for name, weight in self.read_trained(model, directory).items():
                model.get_parameter(name).copy_(weight)

    def write_trained(self, trained: Mapping[str, Tensor], model: GPT, directory: Path) -> None:
        write_adapter(trained, model.config, self.config, self.base_path, directory)

    def read_trained(self, model: GPT, directory: Path) -> dict[str, Tensor]:
        return read_adapter(model, directory)


def write_adapter(
    trained: Mapping[str, Tensor], model: ModelConfig, config: LoraConfig, base: str, directory: Path
) -> None:
    """Write the adapters, and the weights beside them that were trained whole, as PEFT stores them. `trained` has them
    by their names in the model."""
    names = names_of(model)
    tensors: dict[str, Tensor] = {}
    for module in adapted(model, config):
        for theirs, rows in outgoing(f"{module}.weight", trained[f"{module}.lora_b"], model, names):
            their_module = theirs.removesuffix(".weight")
            tensors[f"{PREFIX}{their_module}.lora_A.weight"] = trained[f"{module}.lora_a"]
            tensors[f"{PREFIX}{their_module}.lora_B.weight"] = rows
    whole = {theirs: trained[f"{name}.weight"] for name, theirs in whole_modules(trained, names).items()}
    if model.tie_embeddings and "embedding.weight" in trained:  # PEFT would leave the head that of the base
        whole[names.outside["head"]] = trained["embedding.weight"]
    for theirs, weight in whole.items():
        tensors[f"{PREFIX}{theirs}.weight"] = weight.clone()
    write_tensors(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    document = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if "label_head.weight" in trained else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": _class_names(model).transposed,
        "target_modules": [their for target in config.targets for their in _their_names(target, names)],
        "modules_to_save": sorted(theirs.rpartition(".")[2] for theirs in whole) or None,
        "inference_mode": True,
    }
    fsio.write_new_json(directory / CONFIG, document)


def whole_modules(trained: Collection[str], names: Names) -> dict[str, str]:
    """Return the modules trained whole beside the adapters, for new tokens or labels, with their names in
    transformers. `trained` are the names of weights."""
    return {name: theirs for name, theirs in _outside(names).items() if f"{name}.weight" in trained}


def _outside(names: Names) -> dict[str, str]:
    return {name: names.outside[name] for name in ("embedding", "head", "label_head")}


def _their_names(target: str, names: Names) -> list[str]:
    """Return the modules of theirs inside a block that a target stands for."""
    return [their for module in MODULES[target] for their in names.inside[module]]


def read_adapter(model: GPT, directory: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint's adapter by their names in a model that has its adapters already: to go on
    with training."""
    names = names_of(model.config)
    config = read_lora_config(directory, names)
    tensors = _read(model, config, directory)
    found = {}
    for module in adapted(model.config, config):
        first = names.parts(f"{module}.weight", model.config)[0].name
        found[f"{module}.lora_a"] = _side(tensors, first, "A")
        found[f"{module}.lora_b"] = incoming(
            f"{module}.weight", lambda name: _side(tensors, name, "B"), model.config, names
        )
    for name, theirs in whole_modules(trained_weights(model), names).items():
        found[f"{name}.weight"] = tensors[f"{PREFIX}{theirs}.weight"]
    return found


@torch.no_grad()
def merge_adapter(model: GPT, directory: Path) -> None:
    """Add the adapter of a checkpoint to the weights of its base: W + s B A."""
    names = names_of(model.config)
    config = read_lora_config(directory, names)
    tensors = _read(model, config, directory)
    for module in adapted(model.config, config):
        weight = model.get_parameter(f"{module}.weight")
        change = incoming(
            f"{module}.weight", lambda name: _side(tensors, name, "B") @ _side(tensors, name, "A"), model.config, names
        )
        weight.add_((config.alpha / config.rank * change).to(weight.device, weight.dtype))
    for name, theirs in _outside(names).items():
        if (found := tensors.get(f"{PREFIX}{theirs}.weight")) is not None:
            model.get_parameter(f"{name}.weight").copy_(found)


def read_lora_config(directory: Path, names: Names) -> LoraConfig:
    """Read rank, scale and targets of a checkpoint's adapter."""
    path = directory / CONFIG
    document = fsio.read_json(path)
    try:
        found = set(document["target_modules"])
        targets: tuple[Any, ...] = tuple(t for t in MODULES if set(_their_names(t, names)) <= found)
        if set().union(*(_their_names(target, names) for target in targets)) != found:
            raise ValueError("target_modules are not those of attention, of the MLP or of both")
        return LoraConfig(rank=document["r"], alpha=float(document["lora_alpha"]), targets=targets)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(f"{escape(str(path))}: not an adapter of gptcli ({escape(str(error))})") from None


def names_of(config: ModelConfig) -> Names:
    """Return the tensor names of the class of transformers that holds the model, else of the nearest one.

    A and B are those of plain linear layers even where the matrix beside them is transposed.
    """
    return dataclasses.replace(_class_names(config), transposed=False)


def _class_names(config: ModelConfig) -> Names:
    first = (GPT2, LLAMA, QWEN3, NANOCHAT)  # whose names adapters have always had
    nearest = GPT2 if config.position == "learned" else NANOCHAT
    return next((family for family in (*first, *FAMILIES.values()) if not any(problems(config, family))), nearest).names


def _read(model: GPT, config: LoraConfig, directory: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter file, their names and shapes checked; DataError where it is for another base."""
    names = names_of(model.config)
    rank, wanted = config.rank, dict[str, torch.Size]()
    for module in adapted(model.config, config):
        weight = model.get_parameter(f"{module}.weight")
        for part in names.parts(f"{module}.weight", model.config):
            theirs = PREFIX + part.name.removesuffix(".weight")
            wanted[f"{theirs}.lora_A.weight"] = torch.Size((rank, weight.shape[1]))
            wanted[f"{theirs}.lora_B.weight"] = torch.Size((part.rows or weight.shape[0], rank))
    path = directory / WEIGHTS
    have = tensor_shapes(path)
    for name, theirs in _outside(names).items():
        if f"{PREFIX}{theirs}.weight" in have:
            wanted[f"{PREFIX}{theirs}.weight"] = model.get_parameter(f"{name}.weight").shape
    tensors = read_tensors(path, wanted)
    check_finite(tensors, escape(str(path)))
    return tensors


def _side(tensors: dict[str, Tensor], name: str, side: str) -> Tensor:
    """Return a or B of a module of theirs, which the name of its weight stands for."""
    return tensors[f"{PREFIX}{name.removesuffix('.weight')}.lora_{side}.weight"]
