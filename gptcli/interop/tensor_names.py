"""The names of the tensors of model.GPT in other formats: one table serves both directions.

A module of ours may be several of theirs, stacked: `attention.qkv` holds the rows of queries, keys and values,
`mlp.up` of a gated MLP those of gate and up.
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
    # How the rows of a head that are rotated are laid: halves as ours, halves swapped (it turns the other way), or
    # pairs side by side. Dot products of queries and keys are the same in all three.
    rotation: Literal["halves", "swapped halves", "pairs"] = "halves"
    by_head: bool = False  # one tensor of qkv holds query, key and value of a head, and then those of the next
    norm_offset: float = 0.0  # weights of norms are stored less this: Gemma's scale is 1 + weight
    position_offset: int = 0  # rows of the position embedding before the first position's

    def parts(self, name: str, config: ModelConfig) -> list[Part]:
        """Return the tensors of theirs that are tensor `name` of ours, in the order of their rows."""
        if match := _IN_BLOCK.fullmatch(name):
            layer, module, kind = match[1], match[2], match[3]
            theirs = [f"{self.block.format(layer)}{their}.{kind}" for their in self.inside[module]]
        else:
            module, _, kind = name.rpartition(".")
            theirs = [f"{self.outside[module]}.{kind}"]
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        rows = {3: [H * D, K * D, K * D], 2: [config.mlp_size] * 2}.get(len(theirs), [0])
        return [
            Part(
                their,
                count,
                transposed=self.transposed and module in LINEARS and kind == "weight",
                offset=self.norm_offset if "norm" in module and kind == "weight" else 0.0,
                skipped=self.position_offset if module == "position_embedding" else 0,
            )
            for their, count in zip(theirs, rows, strict=True)
        ]

    def order(self, name: str, config: ModelConfig) -> Tensor | None:
        """Return, for each row of our tensor `name`, its row in the stack of theirs; None where the order is the
        same."""
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        head = torch.tensor(self._head_order(D, config.rotary_dim or D if config.position == "rope" else 0))
        if name.endswith((".query_norm.weight", ".key_norm.weight")):
            heads = 1 if config.qk_norm_width == "head" else H if ".query_norm." in name else K
            found = torch.arange(heads * D).view(heads, D)[:, head].flatten()
        elif ".attention.qkv." in name:
            rows = torch.arange((H + 2 * K) * D)
            if self.by_head:
                groups = rows.view(K, H // K + 2, D)
                q, k, v = groups[:, :-2].reshape(H, D), groups[:, -2], groups[:, -1]
            else:
                q, k, v = (part.view(-1, D) for part in rows.split_with_sizes((H * D, K * D, K * D)))
            found = torch.cat((q[:, head], k[:, head], v)).flatten()
        else:
            return None
        return None if torch.equal(found, torch.arange(len(found))) else found

    def _head_order(self, D: int, R: int) -> list[int]:
        """Return the place in a head of theirs of each of ours, where the first R of theirs are rotated: ours turns i
        with i + D/2, and has what is not rotated last in either half."""
        half, rest = R // 2, list(range(R, D))
        match self.rotation:
            case "halves":
                first, second = list(range(half)), list(range(half, R))
            case "swapped halves":
                first, second = list(range(half, R)), list(range(half))
            case "pairs":
                first, second = list(range(0, R, 2)), list(range(1, R, 2))
        return first + rest[: len(rest) // 2] + second + rest[len(rest) // 2 :]


@dataclass(frozen=True)
class Part:
    """A tensor of theirs, and how many rows of ours it is (0: all of them)."""

    name: str
    rows: int
    transposed: bool = False
    offset: float = 0.0
    skipped: int = 0  # rows before ours

    def shape(self, ours: torch.Size) -> torch.Size:
        """Return the shape of this part where our whole tensor has the shape `ours`."""
        shape = [(self.rows or ours[0]) + self.skipped, *ours[1:]]
        return torch.Size(reversed(shape) if self.transposed else shape)


def outgoing(name: str, tensor: Tensor, config: ModelConfig, names: Names) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor of ours as names and tensors of theirs."""
    parts = names.parts(name, config)
    if (order := names.order(name, config)) is not None:
        tensor = tensor[order.argsort().to(tensor.device)]
    pieces = torch.split(tensor, [part.rows or len(tensor) for part in parts])
    for part, piece in zip(parts, pieces, strict=True):
        if part.offset:
            piece = piece - part.offset
        if part.skipped:
            piece = torch.cat((piece.new_zeros(part.skipped, *piece.shape[1:]), piece))
        yield part.name, (piece.T if part.transposed else piece).contiguous()


def incoming(name: str, read: Callable[[str], Tensor], config: ModelConfig, names: Names) -> Tensor:
    """Assemble our tensor `name` from theirs, which `read` gives by name."""
    pieces = []
    for part in names.parts(name, config):
        piece = read(part.name)
        piece = (piece.T if part.transposed else piece)[part.skipped :]
        pieces.append(piece + part.offset if part.offset else piece)
    tensor = torch.cat(pieces) if len(pieces) > 1 else pieces[0].contiguous()
    order = names.order(name, config)
    return tensor if order is None else tensor[order.to(tensor.device)]
