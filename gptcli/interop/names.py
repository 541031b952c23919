"""Where another format keeps the tensors of model.GPT: one table serves both directions.

A module of ours may be several of theirs, stacked: `attention.qkv` holds the rows of queries, keys and values,
`mlp.up` of a SwiGLU those of gate and up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gptcli.config.model import ModelConfig

LINEARS = ("attention.qkv", "attention.projection", "mlp.up", "mlp.projection")

_IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Names:
    """Modules of ours -> theirs. `block` is the beginning of a block's names, {} stands for its number."""

    outside: Mapping[str, str]
    block: str
    inside: Mapping[str, tuple[str, ...]]
    transposed: bool = False  # the matrices of linear layers are (inputs, outputs), as in Conv1D
    # How a head's rows are laid for the rotation: halves as ours, halves swapped (it turns the other way), or pairs
    # side by side. Dot products of queries and keys are the same in all three.
    rotation: Literal["halves", "swapped halves", "pairs"] = "halves"

    def parts(self, name: str, config: ModelConfig) -> list[Part]:
        """The tensors of theirs that are tensor `name` of ours, in the order of their rows."""
        if match := _IN_BLOCK.fullmatch(name):
            layer, module, kind = match[1], match[2], match[3]
            theirs = [f"{self.block.format(layer)}{their}.{kind}" for their in self.inside[module]]
        else:
            module, _, kind = name.rpartition(".")
            theirs = [f"{self.outside[module]}.{kind}"]
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        transposed = self.transposed and module in LINEARS and kind == "weight"
        stacked = [(0, 0)]
        if len(theirs) == 3:
            stacked = [(H * D, H), (K * D, K), (K * D, 0)]
        elif len(theirs) == 2:
            stacked = [(config.mlp_size, 0)] * 2
        return [Part(their, rows, heads, transposed) for their, (rows, heads) in zip(theirs, stacked, strict=True)]


@dataclass(frozen=True)
class Part:
    """A tensor of theirs: how many rows of ours it is (0: all of them), and how many rotated heads those are."""

    name: str
    rows: int
    rotated_heads: int
    transposed: bool

    def shape(self, ours: torch.Size) -> torch.Size:
        """Its shape where the whole tensor of ours has the shape `ours`."""
        shape = [self.rows or ours[0], *ours[1:]]
        return torch.Size(reversed(shape) if self.transposed else shape)


def outgoing(name: str, tensor: Tensor, config: ModelConfig, names: Names) -> Iterator[tuple[str, Tensor]]:
    """A tensor of ours as names and tensors of theirs."""
    parts = names.parts(name, config)
    pieces = torch.split(tensor, [part.rows or len(tensor) for part in parts])
    for part, piece in zip(parts, pieces, strict=True):
        if part.rotated_heads:
            piece = _turn(piece, part.rotated_heads, names.rotation, back=False)
        yield part.name, (piece.T if part.transposed else piece).contiguous()


def incoming(name: str, read: Callable[[str], Tensor], config: ModelConfig, names: Names) -> Tensor:
    """Tensor `name` of ours from those of theirs, which `read` gives by name."""
    pieces = []
    for part in names.parts(name, config):
        piece = read(part.name)
        piece = piece.T if part.transposed else piece
        pieces.append(_turn(piece, part.rotated_heads, names.rotation, back=True) if part.rotated_heads else piece)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0].contiguous()


def _turn(rows: Tensor, heads: int, rotation: str, *, back: bool) -> Tensor:
    """Rows (heads x D, ...) of ours in the layout `rotation`, or back."""
    match rotation:
        case "swapped halves":
            return rows.reshape(heads, 2, -1, *rows.shape[1:]).flip(1).reshape(rows.shape)
        case "pairs":
            split = (-1, 2) if back else (2, -1)
            return rows.reshape(heads, *split, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
        case _:
            return rows
