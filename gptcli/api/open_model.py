"""Open a run or checkpoint directory as a model ready for use: the one way in for every command that uses a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.config.train import RuntimeConfig
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import make_runtime
from gptcli.model.gpt import GPT
from gptcli.model.safetensors_io import check_finite, files_of, read_tensors
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.loaded_model import LoadedModel
from gptcli.train.metadata import Adapter, read_config, read_metadata
from gptcli.train.weights import MODEL_FILE, stored_weights, weights_sha256


class DeviceOptions(TypedDict, total=False):
    """The device on which a model computes, and the precision; the machine chooses what is left out."""

    device: str
    dtype: Literal["auto", "float32", "bfloat16"]
    threads: int | None


def open_model(run: str | Path, **how: Unpack[DeviceOptions]) -> LoadedModel:
    """Load the model of a run or checkpoint for inference, on the device and in the precision that `how` names."""
    directory = find_checkpoint(run)
    runtime = make_runtime(RuntimeConfig(**how), inference=True)
    model, tokenizer = load(directory, device=runtime.device, dtype=runtime.dtype)
    return LoadedModel(directory, model, tokenizer, runtime, read_metadata(directory))


def load(
    path: str | Path, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[GPT, Tokenizer]:
    """Load a run's or checkpoint's model (in eval mode, weights in `dtype`, default as stored) and tokenizer.

    Names, shapes and sizes are checked before any weight is taken; DataError says what does not fit, NumericalError
    which weight is not finite.
    """
    directory = find_checkpoint(path)
    config, metadata = read_config(directory), read_metadata(directory)
    tokenizer_path = directory / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise DataError(f"{escape(str(tokenizer_path))}: missing; the checkpoint is damaged")
    tokenizer = Tokenizer(tokenizer_path.read_bytes(), name=str(tokenizer_path))
    assert config.vocab_size is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{escape(str(tokenizer_path))}: has {tokenizer.vocab_size} tokens and the model {config.vocab_size}; "
            "it is another model's tokenizer"
        )
    if metadata.adapter is not None:
        from gptcli.interop.peft import merge_adapter  # knows every family: that takes its time to load

        model = _load_base(directory, metadata.adapter)
        model.grow(config.vocab_size)
        if metadata.labels:
            model.add_label_head(len(metadata.labels), torch.Generator())
        merge_adapter(model, directory)
        return model.to(device=device, dtype=dtype).eval(), tokenizer
    with torch.device("meta"):
        model = GPT(config, labels=len(metadata.labels))
    weights_path = directory / MODEL_FILE
    weights = read_tensors(weights_path, {name: weight.shape for name, weight in stored_weights(model).items()})
    check_finite(weights, escape(str(weights_path)))
    model.take(weights)
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def _load_base(directory: Path, adapter: Adapter) -> GPT:
    """Load the model that an adapter changes; DataError where it is not there, or not the one it was made for."""
    base = Path(os.path.normpath(directory.resolve() / adapter.base_path))
    if not files_of(base / MODEL_FILE)[0].is_file():
        raise DataError(f"{escape(str(directory))}: its base, {escape(str(base))}, is not there; put it back")
    if weights_sha256(base) != adapter.base_sha256:
        raise DataError(
            f"{escape(str(directory))}: an adapter of another base than {escape(str(base))}, whose weights "
            "have changed; put the old ones back or train it again"
        )
    return load(base)[0]
