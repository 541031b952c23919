"""Adapters that the PEFT library trained, merged into their base: W + s B A for whichever modules they name."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.interop.peft import CONFIG, PREFIX, names_of
from gptcli.interop.tensor_names import incoming
from gptcli.model.gpt import GPT
from gptcli.model.lora import WEIGHTS
from gptcli.model.safetensors_io import check_finite, read_tensors, tensor_shapes

_SIDE = re.compile(r"(.+)\.lora_(?:(A|B)\.weight|embedding_(A|B))")


def is_adapter(source: Path) -> bool:
    """Return whether a directory holds a PEFT adapter and no model."""
    return (source / CONFIG).is_file() and not (source / "config.json").is_file()


@torch.no_grad()
def merge_foreign(model: GPT, directory: Path) -> None:
    """Add an adapter to the weights of its base. DataError names what of it is not held, or fits no weight."""
    path = directory / WEIGHTS
    place = escape(str(directory / CONFIG))
    config = fsio.read_json(directory / CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise DataError(f"{place}: peft_type {escape(str(kind))}; gptcli merges LORA")
    for key in ("use_dora", "layer_replication", "use_qalora", "lora_bias", "target_parameters"):
        if config.get(key):
            raise DataError(
                f"{place}: {key}: gptcli does not hold it; merge with PEFT (merge_and_unload) and import that"
            )
    if not path.is_file():
        pickles = sorted(directory.glob("*.bin"))
        why = f"{pickles[0].name} is a pickle, which may run any code; save it anew with PEFT" if pickles else "missing"
        raise DataError(f"{escape(str(path))}: {escape(why)}")
    tensors = read_tensors(path, tensor_shapes(path))
    check_finite(tensors, escape(str(path)))
    tensors = {name.removeprefix(PREFIX): tensor.float() for name, tensor in tensors.items()}
    changes = _changes(tensors, config, place)
    whole = {name: tensor for name, tensor in tensors.items() if not _SIDE.fullmatch(name)}
    _take_whole(model, whole, escape(str(path)))
    _add(model, changes, escape(str(path)))


def _changes(tensors: Mapping[str, Tensor], config: Mapping[str, Any], place: str) -> dict[str, Tensor]:
    """Return the change s B A of each of their modules, shaped as its weight."""
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _SIDE.fullmatch(name):
            sides.setdefault(match[1], {})[match[2] or f"E{match[3]}"] = tensor
    changes = {}
    for module, found in sides.items():
        rank, alpha = (_number(config, module, key) for key in ("r", "lora_alpha"))
        match found:
            case {"A": a, "B": b} if a.ndim == b.ndim == 2 and len(a) == b.shape[1] == rank:
                change = b @ a
            case {"EA": a, "EB": b} if len(a) == b.shape[1] == rank:
                change = (b @ a).T
            case _:
                raise DataError(f"{place}: the two sides of {escape(module)} do not fit rank {rank}; it is damaged")
        changes[f"{module}.weight"] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank) * change
    return changes


def _number(config: Mapping[str, Any], module: str, key: str) -> float:
    """Return r or lora_alpha of a module: of the first pattern that its name ends with, else the general one."""
    patterns = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}
    for pattern, number in patterns.items():
        if module == pattern or module.endswith(f".{pattern}"):
            return number
    value = config.get(key)
    if not isinstance(value, (int, float)) or value <= 0:
        raise DataError(f"{escape(key)}: want a number above 0, got {escape(repr(value))}; the adapter is damaged")
    return value


def _take_whole(model: GPT, whole: Mapping[str, Tensor], place: str) -> None:
    """Put in what was trained whole: the embedding and the head, which new tokens need."""
    names = names_of(model.config).outside
    ours = {f"{names[name]}.weight": name for name in ("embedding", "final_norm", "head")}
    if extra := sorted(set(whole) - set(ours)):
        raise DataError(f"{place}: {escape(extra[0])} fits no weight of the base; is it another model's adapter?")
    given = {ours[name]: tensor for name, tensor in whole.items()}
    sizes = {len(tensor) for name, tensor in given.items() if name != "final_norm"}
    tied = model.config.tie_embeddings
    if sizes:
        model.grow(max(sizes))
    if tied and given.keys() & {"embedding", "head"} and not _same(given.get("embedding"), given.get("head")):
        # PEFT trains a copy of the one and leaves the other as it was.
        model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
        model.config = dataclasses.replace(model.config, tie_embeddings=False)
    for name, tensor in given.items():
        weight = model.get_parameter(f"{name}.weight")
        if weight.shape != tensor.shape:
            raise DataError(f"{place}: {escape(name)} has shape {tuple(tensor.shape)}, want {tuple(weight.shape)}")
        weight.copy_(tensor)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def _add(model: GPT, changes: Mapping[str, Tensor], place: str) -> None:
    names, used = names_of(model.config), set()
    for name, weight in model.named_parameters():
        if not name.endswith(".weight") or weight.ndim != 2 or (name == "label_head.weight"):
            continue
        parts = names.parts(name, model.config)
        if not any(part.name in changes for part in parts):
            continue
        if model.config.tie_embeddings and name == "embedding.weight":
            raise DataError(
                f"{place}: changes the embedding, which is the head as well; merge with PEFT and import that"
            )
        for part in parts:
            wanted = torch.Size((part.rows or weight.shape[0], weight.shape[1]))
            if part.name in changes and changes[part.name].shape != wanted:
                raise DataError(f"{place}: {escape(part.name)} has shape {tuple(changes[part.name].shape)}, "
                                f"want {tuple(wanted)}; is it another model's adapter?")  # fmt: skip
        rows = {part.name: part.rows or weight.shape[0] for part in parts}

        def read(theirs: str, width: int = weight.shape[1], rows: dict[str, int] = rows) -> Tensor:
            change = changes.get(theirs)
            return torch.zeros(rows[theirs], width) if change is None else change

        weight.add_(incoming(name, read, model.config, names).to(weight.dtype))
        used |= {part.name for part in parts}
    if unused := sorted(set(changes) - used):
        raise DataError(f"{place}: {escape(unused[0])} fits no weight of the base; is it another model's adapter?")
