"""A checkpoint is a directory that stands alone: weights, config, tokenizer, and what training needs to go on.

config.json           {format, version, step, model}, and `labels` and `pooling` of a classifier, `conversation` of a
                      chat model
model.safetensors     weights by their names in model.gpt.GPT; this and training.safetensors lie there in parts where
                      several processes wrote them: see train/checkpoint_sharded.py
tokenizer.json
lineage.json          hashes of what the run comes from: see train/lineage.py
origin.json           of an imported model: the files beside its weights, for the way back
training.safetensors  optimizer state: `KIND.PARAMETER`
carried.safetensors   where several steps learn from the same text of the model's own: that text
training.json         step, tokens seen, the run file, the best validation so far
manifest.json         size and sha256 of the others; written last, before the directory gets its name
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.tokenizer import Tokenizer
from gptcli.model.gpt import GPT
from gptcli.model.lora import WEIGHTS as ADAPTER_WEIGHTS
from gptcli.model.safetensors_io import check_finite, files_of, read_tensors, tensor_shapes, write_tensors
from gptcli.train.checkpoint_paths import step_directory
from gptcli.train.metadata import FORMAT, ORIGIN_FILE, VERSION, ModelMetadata, read_config, read_metadata
from gptcli.train.muon import SECOND_MOMENT
from gptcli.train.state import ScheduleRescale, TrainState
from gptcli.train.weights import MODEL_FILE, WholeWeights, stored_weights

LINEAGE_FILE = "lineage.json"
CARRIED_FILE = "carried.safetensors"
TRAINING_FILE = "training.safetensors"


def save(
    state: TrainState,
    run_dir: Path,
    tokenizer: Tokenizer,
    run_file: dict[str, Any],
    metadata: ModelMetadata | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of state.step; it appears whole or not at all. NumericalError for what is not finite."""
    path = step_directory(run_dir, state.step)
    slots = state.optimizers.tensors(create=True)  # also of a run that had no target yet, and so no update
    check_finite(stored_weights(state.model) | slots, f"step {state.step}")
    with fsio.new_directory(path) as directory:
        state.weights.write(state.model, directory)
        write_tensors(slots, directory / TRAINING_FILE)
        write_documents(state, tokenizer, directory, run_file, metadata, lineage)
    return path


def write_documents(
    state: TrainState,
    tokenizer: Tokenizer,
    directory: Path,
    run_file: dict[str, Any],
    metadata: ModelMetadata | None,
    lineage: Mapping[str, Any] | None,
) -> None:
    """Write all of a checkpoint but weights and optimizer state."""
    _describe_model(state.model, tokenizer, directory, step=state.step, metadata=metadata)
    if state.carried:
        write_tensors(state.carried, directory / CARRIED_FILE)
    training = {
        "step": state.step,
        "tokens": state.tokens,
        "best_score": None if state.best_step is None else state.best_score,
        "best_step": state.best_step,
        "pending": state.post_step_pending,
        "stretch": None if state.schedule_rescale is None else dataclasses.asdict(state.schedule_rescale),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "run": run_file,
    }
    fsio.write_new_json(directory / "training.json", training)
    if lineage is not None:
        fsio.write_new_json(directory / LINEAGE_FILE, dict(lineage))


def save_model(
    model: GPT,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    step: int,
    metadata: ModelMetadata | None = None,
) -> None:
    """Write the part of a checkpoint that loading a model needs."""
    WholeWeights().write(model, directory)
    _describe_model(model, tokenizer, directory, step=step, metadata=metadata)


def _describe_model(
    model: GPT, tokenizer: Tokenizer, directory: Path, *, step: int, metadata: ModelMetadata | None
) -> None:
    """Write tokenizer and config."""
    fsio.write_new_file(directory / "tokenizer.json", tokenizer.content)
    if metadata and metadata.origin:
        fsio.write_new_json(directory / ORIGIN_FILE, dict(metadata.origin))
    config = {"format": FORMAT, "version": VERSION, "step": step, "model": dataclasses.asdict(model.config)}
    fsio.write_new_json(directory / "config.json", config | (metadata or ModelMetadata()).as_json())


def restore(state: TrainState, directory: Path) -> dict[str, Any]:
    """Bring `state` to a verified checkpoint; returns its training.json. DataError where it does not fit."""
    state.weights.read(state.model, directory)
    slots = state.optimizers.tensors(create=True)
    stored = read_tensors(directory / TRAINING_FILE, {name: slot.shape for name, slot in slots.items()})
    for name, slot in slots.items():
        slot.copy_(stored[name])
    return restore_documents(state, directory)


def restore_documents(state: TrainState, directory: Path) -> dict[str, Any]:
    """Bring all of `state` but weights and optimizer state to a checkpoint; returns its training.json."""
    training: dict[str, Any] = fsio.read_json(directory / "training.json")
    state.carried.clear()
    if (carried := directory / CARRIED_FILE).is_file():
        state.carried |= read_tensors(carried, tensor_shapes(carried))
    try:
        state.step, state.tokens = int(training["step"]), int(training["tokens"])
        state.post_step_pending = bool(training.get("pending"))
        if training["best_step"] is not None:
            state.best_score, state.best_step = (
                float(training["best_score"]),
                int(training["best_step"]),
            )
        state.schedule_rescale = ScheduleRescale(**training["stretch"]) if training.get("stretch") else None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{escape(str(directory / 'training.json'))}: {escape(str(error))}") from None
    return training


def verify(directory: Path) -> None:
    """Check all of a checkpoint: sizes and hashes, names and shapes of the tensors, and that their values are finite.

    DataError or NumericalError names the first file or tensor that is wrong.
    """
    described = fsio.verify(directory)
    metadata = read_metadata(directory) if "config.json" in described else ModelMetadata()
    weights_path = directory / (MODEL_FILE if metadata.adapter is None else ADAPTER_WEIGHTS)
    if missing := {"config.json", "tokenizer.json", *(file.name for file in files_of(weights_path))} - described:
        raise DataError(f"{escape(str(directory / fsio.MANIFEST))}: says nothing of {min(missing)}; it is damaged")
    config = read_config(directory)
    Tokenizer.load(directory)
    with torch.device("meta"):
        model = GPT(config, labels=len(metadata.labels))
    shapes = {name: weight.shape for name, weight in stored_weights(model).items()}
    wanted = shapes if metadata.adapter is None else tensor_shapes(weights_path)  # those of an adapter fit its base
    check_finite(read_tensors(weights_path, wanted), escape(str(weights_path)))
    training_path = directory / TRAINING_FILE
    if {file.name for file in files_of(training_path)} <= described:
        slots = tensor_shapes(training_path)
        for name, shape in slots.items():
            kind, _, weight = name.partition(".")
            wanted_shape = shapes.get(weight, ())
            fits = shape == wanted_shape or (kind == SECOND_MOMENT and _is_part(shape, wanted_shape))
            if metadata.adapter is None and len(shape) and not fits:
                raise DataError(f"{escape(str(training_path))}: {escape(name)} fits no weight of the model")
        check_finite(read_tensors(training_path, slots), escape(str(training_path)))


def _is_part(shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Return whether a tensor has as many dimensions as another one and none longer."""
    return len(shape) == len(whole) and all(part <= size for part, size in zip(shape, whole, strict=True))
