"""A checkpoint is a directory that stands alone: weights, config, tokenizer, and what training needs to go on.

config.json           {format, version, step, model}, and `labels` and `pooling` of a classifier, `conversation` of a
                      chat model
model.safetensors     weights by their names in model.GPT
tokenizer.json
training.safetensors  optimizer state: `KIND.PARAMETER`
training.json         step, tokens seen, the run file, the best validation so far
manifest.json         size and sha256 of the others; written last, before the directory gets its name
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import shown
from gptcli.config.finetune import LoraConfig, Pooling
from gptcli.config.model import ModelConfig
from gptcli.data.conversation import Conversation
from gptcli.data.shards import is_prepared
from gptcli.data.tokenizer import Tokenizer
from gptcli.model.gpt import GPT
from gptcli.model.lora import WEIGHTS as ADAPTER_WEIGHTS
from gptcli.model.lora import merge_adapter, read_adapter, write_adapter
from gptcli.model.safetensors_io import check_finite, read_tensors, tensor_shapes, write_tensors
from gptcli.train.optimizers import Optimizers
from gptcli.train.step import Passes, make_passes

FORMAT, VERSION = "gptcli-checkpoint", 1
STEP_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Stretch:
    """The rest of a schedule of `planned_steps` made longer or shorter: after `step` steps `position` steps of the
    schedule were behind, and what is left of it ends with `last_step`."""

    planned_steps: int
    step: int
    position: float
    last_step: int


@dataclass
class TrainState:
    """Everything that changes while training; a checkpoint restores it bit for bit."""

    model: GPT
    optimizers: Optimizers
    step: int = 0
    tokens: int = 0
    best_score: float = math.inf  # of the validation that decides, lower is better: bits per byte, or 1 - F1
    best_step: int | None = None
    pending: bool = False  # what follows the step, validation and sample, is still to be done
    stretch: Stretch | None = None  # where a run for a given time was faster or slower than planned

    @functools.cached_property
    def passes(self) -> Passes:
        """What computes its steps."""
        return make_passes(self.model, self.optimizers)

    def last_step(self, planned_steps: int) -> int:
        """The step that ends a run of so many steps."""
        stretch = self.stretch
        return stretch.last_step if stretch and stretch.planned_steps == planned_steps else planned_steps

    def position(self, planned_steps: int) -> float:
        """How many steps of the schedule are behind; `step` itself where it was not stretched."""
        stretch = self.stretch
        if stretch is None or stretch.planned_steps != planned_steps:
            return self.step
        share = (self.step - stretch.step) / (stretch.last_step - stretch.step)
        return stretch.position + (planned_steps - stretch.position) * share


@dataclass(frozen=True)
class Adapter:
    """What a checkpoint without weights of its own is a change to."""

    base_path: str  # a checkpoint, relative to the adapter's own directory
    base_sha256: str  # of its model.safetensors
    lora: LoraConfig | None = None  # None where it is read: adapter_config.json has it


@dataclass(frozen=True)
class Purpose:
    """What a model was tuned for beside text: the labels of its classification head and which tokens name them, the
    form of its conversations."""

    labels: tuple[str, ...] = ()
    conversation: Conversation | None = None
    adapter: Adapter | None = None
    pooling: Pooling = "last"

    def as_json(self) -> dict[str, Any]:
        """The part of config.json that holds it; empty for a model of text."""
        given: dict[str, Any] = {"labels": list(self.labels), "pooling": self.pooling} if self.labels else {}
        if self.conversation is not None:
            given["conversation"] = self.conversation.as_json()
        if self.adapter is not None:
            given["base"] = {"path": self.adapter.base_path, "sha256": self.adapter.base_sha256}
        return given


def step_directory(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:06d}"


def checkpoints(run_dir: Path) -> list[Path]:
    """Directories under checkpoints/ with a checkpoint's name, newest first; nothing is said of their content."""
    found = (run_dir / "checkpoints").glob("step-*")
    named = [(int(match[1]), path) for path in found if (match := STEP_NAME.fullmatch(path.name)) and path.is_dir()]
    return [path for _, path in sorted(named, reverse=True)]


def save(
    state: TrainState, run_dir: Path, tokenizer: Tokenizer, run_file: dict[str, Any], purpose: Purpose | None = None
) -> Path:
    """Write the checkpoint of state.step; it appears whole or not at all. NumericalError for what is not finite."""
    path = step_directory(run_dir, state.step)
    slots = state.optimizers.tensors(create=True)  # also of a run that had no target yet, and so no update
    check_finite(stored_weights(state.model) | slots, f"step {state.step}")
    with fsio.new_directory(path) as directory:
        save_model(state.model, tokenizer, directory, step=state.step, purpose=purpose)
        write_tensors(slots, directory / "training.safetensors")
        training = {
            "step": state.step,
            "tokens": state.tokens,
            "best_score": None if state.best_step is None else state.best_score,
            "best_step": state.best_step,
            "pending": state.pending,
            "stretch": None if state.stretch is None else dataclasses.asdict(state.stretch),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "run": run_file,
        }
        fsio.write_new_json(directory / "training.json", training)
    return path


def save_model(model: GPT, tokenizer: Tokenizer, directory: Path, *, step: int, purpose: Purpose | None = None) -> None:
    """The part of a checkpoint that `load` needs. A tied head is stored once, as the embedding."""
    adapter = None if purpose is None else purpose.adapter
    if adapter is None or adapter.lora is None:
        write_tensors(stored_weights(model), directory / "model.safetensors")
    else:
        write_adapter(model, adapter.lora, adapter.base_path, directory)
    fsio.write_new_file(directory / "tokenizer.json", tokenizer.content)
    config = {"format": FORMAT, "version": VERSION, "step": step, "model": dataclasses.asdict(model.config)}
    fsio.write_new_json(directory / "config.json", config | (purpose or Purpose()).as_json())


def resolve(path: str | Path) -> Path:
    """The checkpoint that a user means by a run directory (its best, else its newest) or a checkpoint directory."""
    path = Path(path)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "no such directory"
        raise ConfigError(f"{shown(str(path))}: {what}; want the directory of a run or of a checkpoint")
    candidates = [path, path / "best", path / "latest", *checkpoints(path)]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    if (path / "checkpoints").is_dir():
        raise DataError(f"{shown(str(path))}: the run has no complete checkpoint; go on with gptcli pretrain --resume")
    if is_prepared(path):
        raise DataError(f"{shown(str(path))}: is prepared text; train on it: data.train: [{shown(str(path))}]")
    if any((path / name).is_file() for name in ("model.safetensors", fsio.MANIFEST)):
        raise DataError(f"{shown(str(path / 'config.json'))}: missing; the checkpoint is damaged")
    runs = sorted(str(child) for child in path.iterdir() if (child / "checkpoints").is_dir())
    mend = f"did you mean {shown(runs[0])}?" if runs else "want the directory of a run or of a checkpoint"
    raise DataError(f"{shown(str(path))}: holds no checkpoint; {mend}")


def load(
    path: str | Path, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[GPT, Tokenizer]:
    """Model (in eval mode, weights in `dtype`, default as stored) and tokenizer of a run or checkpoint.

    Names, shapes and sizes are checked before any weight is taken; DataError says what does not fit, NumericalError
    which weight is not finite.
    """
    directory = resolve(path)
    config, purpose = read_config(directory), read_purpose(directory)
    tokenizer_path = directory / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise DataError(f"{shown(str(tokenizer_path))}: missing; the checkpoint is damaged")
    tokenizer = Tokenizer(tokenizer_path.read_bytes(), name=str(tokenizer_path))
    assert config.vocab_size is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{shown(str(tokenizer_path))}: has {tokenizer.vocab_size} tokens and the model {config.vocab_size}; "
            "it is another model's tokenizer"
        )
    if purpose.adapter is not None:
        model = _load_base(directory, purpose.adapter)
        model.grow(config.vocab_size)
        if purpose.labels:
            model.add_label_head(len(purpose.labels), torch.Generator())
        merge_adapter(model, directory)
        return model.to(device=device, dtype=dtype).eval(), tokenizer
    with torch.device("meta"):
        model = GPT(config, labels=len(purpose.labels))
    weights_path = directory / "model.safetensors"
    weights = read_tensors(weights_path, {name: weight.shape for name, weight in stored_weights(model).items()})
    check_finite(weights, shown(str(weights_path)))
    model.take(weights)
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def _load_base(directory: Path, adapter: Adapter) -> GPT:
    """The model that an adapter changes; DataError where it is not there, or not the one it was made for."""
    base = Path(os.path.normpath(directory.resolve() / adapter.base_path))
    if not (base / "model.safetensors").is_file():
        raise DataError(f"{shown(str(directory))}: its base, {shown(str(base))}, is not there; put it back")
    if weights_sha256(base) != adapter.base_sha256:
        raise DataError(
            f"{shown(str(directory))}: an adapter of another base than {shown(str(base))}, whose weights "
            "have changed; put the old ones back or train it again"
        )
    return load(base)[0]


def weights_sha256(directory: Path) -> str:
    """The hash of model.safetensors that the manifest states, else that of the file."""
    if (directory / fsio.MANIFEST).is_file():
        files = fsio.read_json(directory / fsio.MANIFEST).get("files", {})
        if isinstance(stated := files.get("model.safetensors", {}).get("sha256"), str):
            return stated
    return fsio.sha256(directory / "model.safetensors")


def stored_weights(model: GPT) -> dict[str, torch.Tensor]:
    """Names and tensors that model.safetensors holds."""
    return {k: v for k, v in model.state_dict().items() if k != "head.weight" or not model.config.tie_embeddings}


def read_config(directory: Path) -> ModelConfig:
    """The model config of a checkpoint directory."""
    document = _read_document(directory)
    try:
        config = ModelConfig(**document["model"])
        if type(config.vocab_size) is not int:
            raise TypeError("vocab_size is missing")
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise _damaged(directory / "config.json", error) from None
    return config


def read_purpose(directory: Path) -> Purpose:
    """What the model of a checkpoint directory was tuned for."""
    document = _read_document(directory)
    labels, conversation = document.get("labels", []), document.get("conversation")
    try:
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("labels must be a list of names")
        form = None if conversation is None else Conversation.from_json(conversation)
        base = document.get("base")
        adapter = None if base is None else Adapter(str(base["path"]), str(base["sha256"]))
        pooling = document.get("pooling", "last")
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}")
        return Purpose(tuple(labels), form, adapter, pooling)
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(directory / "config.json", error) from None


def _read_document(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    document = fsio.read_json(path)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{shown(str(path))}: not the config of a gptcli checkpoint")
    if document.get("version") != VERSION:
        raise DataError(
            f"{shown(str(path))}: version {shown(str(document.get('version')))}; this gptcli reads {VERSION}"
        )
    return document


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{shown(str(path))}: {shown(str(error))}; the checkpoint is damaged")


def restore(state: TrainState, directory: Path) -> dict[str, Any]:
    """Bring `state` to a verified checkpoint; returns its training.json. DataError where it does not fit."""
    training: dict[str, Any] = fsio.read_json(directory / "training.json")
    shapes = {name: tensor.shape for name, tensor in stored_weights(state.model).items()}
    if read_purpose(directory).adapter is None:
        state.model.load_state_dict(read_tensors(directory / "model.safetensors", shapes), strict=False)
    else:
        read_adapter(state.model, directory)
    slots = state.optimizers.tensors(create=True)
    stored = read_tensors(directory / "training.safetensors", {name: slot.shape for name, slot in slots.items()})
    for name, slot in slots.items():
        slot.copy_(stored[name])
    try:
        state.step, state.tokens = int(training["step"]), int(training["tokens"])
        state.pending = bool(training.get("pending"))
        if training["best_step"] is not None:
            state.best_score, state.best_step = (
                float(training["best_score"]),
                int(training["best_step"]),
            )
        state.stretch = Stretch(**training["stretch"]) if training.get("stretch") else None
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{shown(str(directory / 'training.json'))}: {shown(str(error))}") from None
    return training


def verify(directory: Path) -> None:
    """Check all of a checkpoint: sizes and hashes, names and shapes of the tensors, and that their values are finite.

    DataError or NumericalError names the first file or tensor that is wrong.
    """
    described = fsio.verify(directory)
    purpose = read_purpose(directory) if "config.json" in described else Purpose()
    weights_path = directory / ("model.safetensors" if purpose.adapter is None else ADAPTER_WEIGHTS)
    if missing := {"config.json", "tokenizer.json", weights_path.name} - described:
        raise DataError(f"{shown(str(directory / fsio.MANIFEST))}: says nothing of {min(missing)}; it is damaged")
    config = read_config(directory)
    Tokenizer.load(directory)
    with torch.device("meta"):
        model = GPT(config, labels=len(purpose.labels))
    shapes = {name: weight.shape for name, weight in stored_weights(model).items()}
    wanted = shapes if purpose.adapter is None else tensor_shapes(weights_path)  # those of an adapter fit its base
    check_finite(read_tensors(weights_path, wanted), shown(str(weights_path)))
    training_path = directory / "training.safetensors"
    if training_path.name in described:
        slots = tensor_shapes(training_path)
        for name, shape in slots.items():
            if purpose.adapter is None and len(shape) and shape != shapes.get(name.partition(".")[2]):
                raise DataError(f"{shown(str(training_path))}: {shown(name)} fits no weight of the model")
        check_finite(read_tensors(training_path, slots), shown(str(training_path)))


def newest_verified(run_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole, or None where there is none at all; DataError where all are damaged."""
    tried: list[str] = []
    for path in checkpoints(run_dir):
        try:
            verify(path)
        except (GptcliError, OSError) as error:
            tried.append(str(error))
            continue
        if tried:
            warn(f"{'; '.join(tried)}: going on from {shown(str(path))}")
        return path
    if tried:
        raise DataError(*tried)
    return None
