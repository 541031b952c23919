"""A directory as transformers writes it: config.json and safetensors -> GPT. Nothing of it is trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.interop.configs import family_of, labels_of, read_config
from gptcli.interop.family import Family
from gptcli.interop.tensor_names import incoming
from gptcli.model.gpt import GPT
from gptcli.model.safetensors_io import check_finite
from gptcli.train.weights import stored_weights

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FILE_NAME = re.compile(r"[\w.-]+")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
BUFFERS = re.compile(
    r"(^|\.)((attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq)$"
)  # that old files hold beside the weights
TENSOR_TYPES = ("F64", "F32", "F16", "BF16")


def read_document(directory: Path) -> dict[str, Any]:
    """Return the config.json of a directory; ConfigError where there is no such directory."""
    if not directory.is_dir():
        raise ConfigError(
            f"{escape(str(directory))}: no such directory; gptcli does not download, get the files first, "
            "for example with: hf download NAME --local-dir DIR"
        )
    path = inside(directory, "config.json")
    if path is None:
        raise DataError(f"{escape(str(directory / 'config.json'))}: missing; want a directory that transformers wrote")
    document = fsio.read_json(path)
    if not isinstance(document, dict):
        raise DataError(f"{escape(str(path))}: want a JSON object; the file is damaged")
    return document


def inside(directory: Path, name: str) -> Path | None:
    """Return the regular file `name` of the directory, or None; DataError where it lies elsewhere.

    A snapshot in the cache of huggingface_hub links into the blobs of its own repository, which are inside too.
    """
    root = directory.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    path = directory / name
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(root):
        raise DataError(f"{escape(str(path))}: leads out of the directory; copy the file itself there")
    return path


def read_model(directory: Path, document: Mapping[str, Any]) -> GPT:
    """Return the model of a directory, in float32; DataError names what is missing, damaged or cannot be held."""
    place = escape(str(directory / "config.json"))
    family = family_of(document, place)
    config = read_config(document, family, place)
    with torch.device("meta"):
        model = GPT(config, labels=len(labels_of(document, place)))
    with _open_weights(directory) as files:
        weights = _read_weights(directory, files, model, family)
    model.take(weights)
    return model.eval()


Files = dict[str, Any]  # tensor name -> the open safetensors file that holds it


@contextmanager
def _open_weights(directory: Path) -> Iterator[Files]:
    """Open the weight files, memory-mapped; yield the file of each tensor by its name."""
    with ExitStack() as stack:
        files: Files = {}
        for path, wanted in _weight_files(directory):
            try:
                file = stack.enter_context(safetensors.safe_open(path, "pt"))
            except (safetensors.SafetensorError, OSError) as error:
                raise DataError(
                    f"{escape(str(path))}: not a safetensors file ({escape(str(error))}); it is cut or damaged"
                ) from None
            held = set(file.keys())
            if missing := sorted((wanted or set()) - held):
                raise DataError(
                    f"{escape(str(path))}: does not hold {escape(missing[0])}, which the index says is there"
                )
            files |= dict.fromkeys(wanted or held, file)
        yield files


def _weight_files(directory: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """Yield the safetensors files of a directory, each with the tensors wanted of it (None: all)."""
    if path := inside(directory, SINGLE):
        yield path, None
        return
    index = inside(directory, INDEX)
    if index is None:
        raise DataError(_no_weights(directory))
    place = escape(str(index))
    document = fsio.read_json(index)
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{place}: no weight_map from tensors to files; the file is damaged")
    for name in sorted(set(names.values())):
        if not FILE_NAME.fullmatch(name):
            raise DataError(
                f"{place}: file name {escape(name)} leads out of the directory; the index is not to be trusted"
            )
        path = inside(directory, name)
        if path is None:
            raise DataError(f"{place}: {escape(name)} is not there; download it too")
        yield path, {tensor for tensor, file in names.items() if file == name}


def _no_weights(directory: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if not pickles:
        return f"{escape(str(directory))}: no {SINGLE} and no {INDEX}; download the weights too"
    return (
        f"{escape(str(directory / pickles[0]))}: a pickle, which may run any code when it is read, so gptcli does not; "
        'get the safetensors of this model or, where you trust it, make them: python -c "from transformers import '
        "AutoModelForCausalLM as M; M.from_pretrained('DIR').save_pretrained('NEW')\""
    )


def _read_weights(directory: Path, files: Files, model: GPT, family: Family) -> dict[str, Tensor]:
    """Return all weights of `model`, which has shapes only; a classifier's own head of a language model is zero."""
    place, config = escape(str(directory)), model.config
    wanted = {name: tensor.shape for name, tensor in stored_weights(model).items()}
    absent = {name for name in wanted if name.startswith("head.") and model.label_head is not None}
    shapes = {
        part.name: part.shape(shape)
        for name, shape in wanted.items()
        if name not in absent
        for part in family.names.parts(name, config)
    }
    found = _by_full_name(files, family, set(shapes))
    unused = {f"{family.names.outside['head']}.weight"} if config.tie_embeddings or absent else set[str]()
    problems = list(_misfits(found, shapes, place, unused=unused))
    if problems:
        raise DataError(*problems)

    def read(name: str) -> Tensor:
        stored, file = found[name]
        tensor: Tensor = file.get_tensor(stored).float()
        check_finite({name: tensor}, place)
        return tensor

    return {
        name: torch.zeros(shape) if name in absent else incoming(name, read, config, family.names)
        for name, shape in wanted.items()
    }


def _by_full_name(files: Files, family: Family, wanted: set[str]) -> dict[str, tuple[str, Any]]:
    """Return tensor -> (its name in the file, the file), with the family's prefix put back where the file dropped
    it."""
    full = {
        name if name in wanted or family.prefix + name not in wanted else family.prefix + name: name for name in files
    }
    return {name: (stored, files[stored]) for name, stored in full.items() if not BUFFERS.search(name)}


def _misfits(
    found: Mapping[str, tuple[str, Any]], shapes: Mapping[str, torch.Size], place: str, *, unused: set[str]
) -> Iterator[str]:
    """Yield what is missing, of another shape or type, or there without a place; at most one of each kind is told."""
    if missing := sorted(set(shapes) - set(found)):
        yield f"{place}: tensor {escape(missing[0])} is missing ({len(missing)} in all); the files are not complete"
    if extra := sorted(set(found) - set(shapes) - unused):
        yield f"{place}: tensor {escape(extra[0])} ({len(extra)} in all) has no place in the model of config.json"
    for name in sorted(set(shapes) & set(found)):
        stored, file = found[name]
        piece = file.get_slice(stored)
        if torch.Size(piece.get_shape()) != shapes[name]:
            want = tuple(shapes[name])
            yield f"{place}: tensor {escape(name)} has shape {tuple(piece.get_shape())}, want {want} by config.json"
            return
        if piece.get_dtype() not in TENSOR_TYPES:
            kinds = ", ".join(TENSOR_TYPES)
            yield f"{place}: tensor {escape(name)} has the type {escape(piece.get_dtype())}; gptcli reads {kinds}"
            return
