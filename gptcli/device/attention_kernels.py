"""The choice of the attention kernel of PyTorch that a device runs fastest, by a short trial."""

from __future__ import annotations

import contextlib
import functools
import warnings

import torch
import torch.nn.functional as F

from gptcli.device.machine import best_seconds

KERNELS = {  # beside the one of plain operations, which can do everything and stays in reserve
    "flash": torch.backends.cuda.enable_flash_sdp,
    "memory-efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
}
TRIAL_SECONDS = 0.02


def use_fastest(shape: tuple[int, int, int, int], kv_heads: int, dtype: torch.dtype, device: torch.device) -> str:
    """Let scaled_dot_product_attention of this process use the kernel that takes the least time for causal attention
    of this shape (B, H, T, D), forward and backward -> its name, `math` where none can."""
    name = fastest(shape, kv_heads, dtype, device)
    _enable(name)
    return name


@functools.cache
def fastest(shape: tuple[int, int, int, int], kv_heads: int, dtype: torch.dtype, device: torch.device) -> str:
    """Return the name of that kernel; which are enabled afterwards is left open."""
    times = {}
    for name in KERNELS:
        _enable(name, reserve=False)
        with warnings.catch_warnings(), contextlib.suppress(RuntimeError):  # not for this device, dtype or shape
            warnings.simplefilter("ignore")  # which tell why
            times[name] = _seconds(shape, kv_heads, dtype, device)
    return min(times, key=times.__getitem__, default="math")


def _enable(only: str, *, reserve: bool = True) -> None:
    for name, enable in KERNELS.items():
        enable(name == only)
    torch.backends.cuda.enable_math_sdp(reserve)


def _seconds(shape: tuple[int, int, int, int], kv_heads: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the shortest time of forward and backward."""
    B, H, T, D = shape
    q, k, v = (
        torch.randn(B, heads, T, D, dtype=dtype, device=device, requires_grad=True) for heads in (H, kv_heads, kv_heads)
    )

    def work() -> None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads != H)
        torch.autograd.backward(y.sum())

    return best_seconds(work, device, TRIAL_SECONDS)
