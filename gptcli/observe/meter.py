"""Bytes that a computation takes, counted on tensors that have shapes and no values: those of the meta device, which
stand for an accelerator, and fake ones of the CPU (torch's FakeTensorMode)."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gptcli.device.private_torch import fake_tensors


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive, and the most there were since `reset`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._add, result)
        return result

    def _add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is gone."""
        storage = tensor.untyped_storage()
        if (key := id(storage)) in self._storages:
            return
        self._storages.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def reset(self) -> int:
        """Return the most there was, and begin anew with what is alive."""
        peak, self.peak = self.peak, self.live
        return peak


@contextmanager
def metered(device: torch.device) -> Iterator[Meter]:
    """Make the tensors of a block ones without values on `device`, meta or cpu, and count their bytes."""
    with nullcontext() if device.type == "meta" else fake_tensors(), Meter() as meter, _FusedAttention(), device:
        yield meter


class _FusedAttention(TorchFunctionMode):
    """Attention on an accelerator as its fused kernels have it, which keep no scores."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].device.type == "meta":
            return _FlashAttention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _FlashAttention(torch.autograd.Function):
    """The memory of a fused kernel: queries, keys, values, result, and a float32 for each query (Dao et al. 2022)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, y, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return y

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
