"""Merge a checkpoint of adapters and its base into one that stands alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from gptcli.api.open_model import load
from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.lineage import read_lineage
from gptcli.train.metadata import read_metadata


def merge(run: str | Path, output: Path, *, force: bool = False) -> int:
    """Make `output` the checkpoint whose weights are W + s B A; returns the number of its parameters."""
    directory = find_checkpoint(run)
    metadata = read_metadata(directory)
    if metadata.adapter is None:
        raise DataError(f"{escape(str(directory))}: has no adapter; it is whole already")
    fsio.check_replaceable(output, force=force)
    fsio.check_apart(output, [directory])
    model, tokenizer = load(directory, dtype=torch.float32)
    with fsio.new_directory(output) as made:
        whole = dataclasses.replace(metadata, adapter=None)
        checkpoint.save_model(model, tokenizer, made, step=0, metadata=whole)
        if (found := read_lineage(directory)) is not None:
            fsio.write_new_json(made / checkpoint.LINEAGE_FILE, found)
    return model.num_parameters()
