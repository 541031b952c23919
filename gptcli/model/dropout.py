"""Dropout (Srivastava et al. 2014), on a CPU by random bits of NumPy's.

PyTorch's CPU draws one number after another, slowly, from one generator for all threads. Here every micro-batch has a
generator of its own, so that two can be computed at a time and what is dropped depends on nothing but its seed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 16  # of a number: a rate is rounded to 1 / 65,536


class _OfThread(threading.local):
    generator: np.random.Generator | None = None


_of_thread = _OfThread()


def seed(number: int, *, numpy: bool, compiled: bool = False) -> None:
    """Decide what this thread drops from now on.

    With `numpy` a generator of this thread does on a CPU, and PyTorch's are left alone, which all threads share. Other
    devices and `compiled` blocks draw from PyTorch's, which are seeded then.
    """
    if compiled or not numpy:
        torch.manual_seed(number)
    if numpy:
        # Not np.random: it loads when it is first read, and where two threads read it first may recurse without end.
        from numpy.random import SFC64, Generator

        _of_thread.generator = Generator(SFC64(number))
    else:
        _of_thread.generator = None


def state(x: Tensor) -> Any:
    """Return what decides what this thread drops next of tensors on the device of x."""
    generator = _generator(x)
    if generator is not None:
        return generator.bit_generator.state
    if x.is_meta or torch.compiler.is_compiling():
        return None
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


@contextmanager
def restored(found: Any, x: Tensor) -> Iterator[None]:
    """Drop as after `state` gave this, and afterwards go on as before."""
    now = state(x)
    _restore(found, x)
    try:
        yield
    finally:
        _restore(now, x)


def _restore(found: Any, x: Tensor) -> None:
    generator = _generator(x)
    if generator is not None:
        generator.bit_generator.state = found
    elif found is not None and x.is_cuda:
        torch.cuda.set_rng_state(found, x.device)
    elif found is not None:
        torch.set_rng_state(found)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return x with a share `rate` of its elements zero and the others divided by 1 - rate."""
    return F.dropout(x, rate) if _generator(x) is None else x * mask(x, rate)


def mask(x: Tensor, rate: float) -> Tensor:
    """Return what x is to be multiplied by, in its shape and dtype: 0 or 1 / (1 - rate)."""
    generator = _generator(x)
    if generator is None:
        return F.dropout(torch.ones_like(x), rate)
    words = generator.integers(1 << 64, size=-(-x.numel() * BITS // 64), dtype=np.uint64)
    numbers = torch.from_numpy(words.view(np.int16)[: x.numel()]).view(x.shape)  # all of -2^15 .. 2^15 - 1
    dropped = min(round(rate * (1 << BITS)), (1 << BITS) - 1)
    kept = (numbers >= dropped - (1 << (BITS - 1))).to(x.dtype)
    return kept.mul_(1 / (1 - dropped / (1 << BITS)))


def _generator(x: Tensor) -> np.random.Generator | None:
    return None if x.device.type != "cpu" or torch.compiler.is_compiling() else _of_thread.generator
