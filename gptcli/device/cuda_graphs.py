"""CUDA graphs: work on fixed tensors, recorded once and replayed without the CPU's part in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], None]  # reads and writes tensors that stay where they are, and nothing else
Record = Callable[[Work], Work]
TOLERANCE = 0.02  # of a change's norm: kernels that add in any order differ by less, and what is wrong by more


def record(work: Work, pool: Any = None) -> Work:
    """Record what `work` does on CUDA, without doing it -> a replay of it. RuntimeError where it cannot be recorded.

    `work` must have been done before, when libraries choose and allocate. `pool`: memory shared with other graphs, none
    of which runs at the same time.
    """
    graph = torch.cuda.CUDAGraph()
    # The outer context restores the stream where the end of a capture that failed raises, too.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=pool):
        work()
    return graph.replay


def recorded(work: Work, changed: Sequence[Tensor], *, record: Record = record) -> Work:
    """Do the work once, and give what does it from now on: a recording, if a replay of it changes the tensors as the
    work itself did, else the work.

    Takes, for the moment, the memory of `changed` three times over. Random numbers are those of the generators' state.
    """
    before = [tensor.clone() for tensor in changed]
    devices = sorted({tensor.device.index for tensor in changed if tensor.is_cuda})
    with torch.random.fork_rng(devices), _beside(devices):  # the replay begins with the same state
        work()
    after = [tensor.clone() for tensor in changed]
    _put(changed, before)
    try:
        replay = record(work)
        replay()
        same = all(_same_change(*each) for each in zip(before, after, changed, strict=True))
        reason = "a replay changed other things" if not same else ""
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error)
    if not reason:
        return replay
    warnings.warn(f"no CUDA graphs: {reason}", RuntimeWarning, stacklevel=2)
    _put(changed, after)
    return work


@contextmanager
def _beside(devices: Sequence[int]) -> Iterator[None]:
    """Run the block on a stream of its own, as PyTorch wants what comes before a capture."""
    if not devices:
        yield
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def _put(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _same_change(before: Tensor, wanted: Tensor, found: Tensor) -> bool:
    """Return whether a tensor changed as it should have, but for rounding."""
    change, other = wanted.double() - before.double(), found.double() - before.double()
    return bool((other - change).norm() <= TOLERANCE * change.norm())
