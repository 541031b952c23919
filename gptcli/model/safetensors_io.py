"""Tensors in a safetensors file: written block by block through fsio, read through a memory map, checked before use."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import DataError, NumericalError
from gptcli.base.escape import escape

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a new safetensors file, one tensor after another, so that no second copy of all is ever held.

    The format (huggingface.co/docs/safetensors): the length of a JSON header as uint64, the header, padded to eight
    bytes, the tensors without gaps. Wide types come first, which keeps every tensor aligned to its type.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    with tensor_file(path, {name: Described.of(tensor) for name, tensor in ordered}, metadata=metadata) as write:
        for _, tensor in ordered:
            write(tensor)


class Described(NamedTuple):
    """A tensor of a file that is yet to be written."""

    dtype: torch.dtype
    shape: torch.Size

    @classmethod
    def of(cls, tensor: Tensor) -> Described:
        return cls(tensor.dtype, tensor.shape)


@contextmanager
def tensor_file(
    path: Path, described: Mapping[str, Described], *, metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[Tensor], None]]:
    """Open a new safetensors file; give what writes the tensors described, which come in their order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in described.items():
        start, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with fsio.new_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)

        def write(tensor: Tensor) -> None:
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            file.write(content.numpy().data)

        yield write


def part_of(path: Path, number: int, count: int) -> Path:
    """Return the name of part `number`, from 0, of a file of tensors that several processes write: as Hugging Face
    names them."""
    return path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}{path.suffix}")


def files_of(path: Path) -> list[Path]:
    """Return the file, or its parts where it lies there in parts."""
    if path.is_file():
        return [path]
    found = re.compile(rf"{re.escape(path.stem)}-\d{{5}}-of-(\d{{5}}){re.escape(path.suffix)}")
    counts = [int(match[1]) for file in path.parent.glob(f"{path.stem}-*") if (match := found.fullmatch(file.name))]
    return [part_of(path, number, counts[0]) for number in range(counts[0])] if counts else [path]


def read_tensors(path: Path, wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of its parts, memory-mapped; DataError unless names and shapes are
    those wanted."""
    have = tensor_shapes(path)
    for name in sorted(set(wanted) | set(have)):
        if wanted.get(name) != have.get(name):
            sizes = [tuple(shape) if shape is not None else "none" for shape in (have.get(name), wanted.get(name))]
            raise DataError(f"{escape(str(path))}: tensor {escape(name)} has shape {sizes[0]}, want {sizes[1]}")
    with _os_errors(path):
        return {name: tensor for file in files_of(path) for name, tensor in load_file(file).items()}


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Raise as an OSError what torch says as a RuntimeError of a file that cannot be opened or mapped."""
    try:
        yield
    except RuntimeError as error:
        number = re.search(r"\((\d+)\)$", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def tensor_shapes(path: Path) -> dict[str, torch.Size]:
    """Return names and shapes in a safetensors file or its parts; DataError where it is missing, cut or damaged."""
    return {name: shape for file in files_of(path) for name, shape in _shapes_in(file).items()}


def _shapes_in(path: Path) -> dict[str, torch.Size]:
    if not path.is_file():
        raise DataError(f"{escape(str(path))}: missing; the checkpoint is damaged")
    try:
        with _os_errors(path), safetensors.safe_open(path, "pt") as file:
            return {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        raise DataError(
            f"{escape(str(path))}: not a safetensors file ({escape(str(error))}); it is cut or damaged"
        ) from None


def check_finite(tensors: Mapping[str, Tensor], place: str) -> None:
    """Raise NumericalError naming the first tensor that holds a NaN or an infinity; `place` begins the message."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()  # a NaN anywhere is both
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise NumericalError(f"{place}: {escape(name)} holds values that are not finite")
