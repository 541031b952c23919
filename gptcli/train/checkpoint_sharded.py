"""The checkpoint of a run whose processes have a part of the model each: every process writes a file of its own.

Names and shapes are those of any checkpoint (train.checkpoint); model.safetensors and training.safetensors lie there in
parts, each with the whole tensors that one process owns, gathered one after another. A LoRA adapter is one file, which
the first process writes. What reads those files reads parts as well (model.safetensors_io), and any number of processes
goes on with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, LostProcess
from gptcli.base.escape import escape
from gptcli.data.tokenizer import Tokenizer
from gptcli.model.safetensors_io import Described, check_finite, part_of, read_tensors, tensor_file, tensor_shapes
from gptcli.train.checkpoint import TRAINING_FILE, restore_documents, write_documents
from gptcli.train.checkpoint_paths import step_directory
from gptcli.train.metadata import ModelMetadata
from gptcli.train.muon import Muon
from gptcli.train.sharded import Sharded
from gptcli.train.state import TrainState
from gptcli.train.weights import MODEL_FILE, TrainedWeights


class _Tensors(NamedTuple):
    """The part that this process has in a file's tensors."""

    by_rows: dict[str, dict[int, Tensor]]  # by kind, which begins the name in the file, and number of the weight
    whole: dict[str, tuple[int, Tensor]]  # by name in the file, with the number of the weight


def save_parts(
    state: TrainState,
    run_dir: Path,
    tokenizer: Tokenizer,
    run_file: dict[str, Any],
    metadata: ModelMetadata | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of state.step in all processes together; it appears whole or not at all, after every part is
    durable. NumericalError for what is not finite, ConfigError where a machine does not have the run directory."""
    sharded, processes = _sharded(state), state.processes
    path = step_directory(run_dir, state.step)
    known: dict[str, fsio.Described] = {}
    with processes.held_by_first(fsio.new_directory(path, known)) as made:
        directory = Path(processes.share(None if made is None else str(made)))
        if not directory.is_dir():
            raise ConfigError(
                f"{escape(str(run_dir))}: is not on the machine of process {processes.rank}, which has a part of the "
                "model to write; set run_dir to a directory that all machines share"
            )
        try:
            mine = _write_mine(state, sharded, directory)
        except FileNotFoundError:
            if processes.is_first:
                raise
            raise LostProcess from None  # the first has failed, says why, and has taken the directory away
        processes.meet()  # disks may differ
        for rank in range(processes.count):
            known |= processes.share(mine, by=rank)
        if processes.is_first:
            write_documents(state, tokenizer, directory, run_file, metadata, lineage)
    processes.share()  # it is there
    return path


def _write_mine(state: TrainState, sharded: Sharded, directory: Path) -> dict[str, fsio.Described]:
    """Write this process's parts, durably -> what each is."""
    written = [_write(_state(state, sharded), sharded, directory / TRAINING_FILE, state.step)]
    if isinstance(state.weights, TrainedWeights):
        trained = {name: sharded.whole(name) for name in sharded.sums}
        check_finite(trained, f"step {state.step}")
        if sharded.processes.is_first:
            state.weights.write_trained(trained, state.model, directory)
    else:
        written.append(_write(_weights(sharded), sharded, directory / MODEL_FILE, state.step))
    for file in written:
        fsio.sync_file(file)
    return {file.name: fsio.describe(file) for file in written}


def restore_parts(state: TrainState, directory: Path) -> None:
    """Bring `state` to a verified checkpoint, in one file or in parts; each process reads its rows of every tensor.
    DataError where they do not fit."""
    sharded = _sharded(state)
    if isinstance(state.weights, TrainedWeights):
        for name, weight in state.weights.read_trained(state.model, directory).items():
            sharded.keep_rows(name, weight)
    else:
        _read(_weights(sharded), sharded, directory / MODEL_FILE)
    _read(_state(state, sharded), sharded, directory / TRAINING_FILE)
    restore_documents(state, directory)


def _sharded(state: TrainState) -> Sharded:
    assert state.sharded is not None
    return state.sharded


def _weights(sharded: Sharded) -> _Tensors:
    return _Tensors({"": {sharded.numbers[name]: part.detach() for name, part in sharded.parts.items()}}, {})


def _state(state: TrainState, sharded: Sharded) -> _Tensors:
    """Return the optimizers' state: AdamW's lies as the weights do, Muon's whole with the owner of a matrix."""
    found = _Tensors({}, {})
    for part in state.optimizers.parts:
        for weight in part.weights():
            name = state.optimizers.names[weight]
            number = sharded.numbers[name]
            for kind, tensor in sorted(part.state_of(weight).items()):
                if kind in part.KINDS and not isinstance(part, Muon):
                    found.by_rows.setdefault(f"{kind}.", {})[number] = tensor
                else:
                    found.whole[f"{kind}.{name}"] = number, tensor
    return found


def _write(tensors: _Tensors, sharded: Sharded, path: Path, step: int) -> Path:
    """Write the tensors of the weights that this process owns to its part of a file, gathered one after another."""
    shards, rank = sharded.shards, sharded.processes.rank
    path, names = part_of(path, rank, sharded.processes.count), list(sharded.parts)
    whole = {name: tensor for name, (number, tensor) in tensors.whole.items() if shards.owners[number] == rank}
    described = {
        kind + names[number]: Described(part.dtype, shards.shapes[number])
        for kind, parts in tensors.by_rows.items()
        for number, part in parts.items()
        if shards.owners[number] == rank
    }
    described |= {name: Described.of(tensor) for name, tensor in whole.items()}
    with tensor_file(path, described) as write:
        for kind, parts in tensors.by_rows.items():
            for wave in shards.waves(parts):
                found, own = shards.gather(wave, parts.__getitem__), wave[rank]
                if found is not None and own is not None:
                    check_finite({kind + names[own]: found}, f"step {step}")
                    write(found)
        check_finite(whole, f"step {step}")
        for tensor in whole.values():
            write(tensor)
    return path


@torch.no_grad()
def _read(tensors: _Tensors, sharded: Sharded, path: Path) -> None:
    """Fill tensors from a file or its parts."""
    names, shapes = list(sharded.parts), sharded.shards.shapes
    known = {kind + names[number]: shapes[number] for kind, parts in tensors.by_rows.items() for number in parts} | {
        name: tensor.shape for name, (_, tensor) in tensors.whole.items()
    }
    stored = read_tensors(path, tensor_shapes(path) | known)  # the others are other processes' to check
    for kind, parts in tensors.by_rows.items():
        for number, part in parts.items():
            part.copy_(stored[kind + names[number]][sharded.shards.rows(number)])
    for name, (_, tensor) in tensors.whole.items():
        tensor.copy_(stored[name])
