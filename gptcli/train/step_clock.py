"""The speed of training: tokens, FLOPs and seconds since the last line of metrics."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gptcli.data.batches import Batch, Step
from gptcli.model.gpt import GPT


class StepClock:
    """A clock that counts what steps read and how long they take."""

    def __init__(self, batch_flops: Callable[[Batch], float]) -> None:
        self.batch_flops = batch_flops
        self.started = time.perf_counter()
        self.steps = self.tokens = self.step_tokens = 0
        self.flops = 0.0

    def counting(self, step: Step) -> Step:
        """Return the step, which is counted as its micro-batches are taken."""
        self.steps += 1
        self.step_tokens = 0

        def counted() -> Iterator[Batch]:
            for batch in step.micro_batches:
                self.tokens += batch.inputs.numel()
                self.step_tokens += batch.inputs.numel()
                self.flops += self.batch_flops(batch)
                yield batch

        return step._replace(micro_batches=counted())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what is done within the block."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def lap(self, peak_flops: float | None) -> dict[str, Any]:
        """Return the speed since the last lap, and begin anew. `mfu` is relative to `peak_flops` a second."""
        seconds = time.perf_counter() - self.started
        speed = {
            "step_seconds": seconds / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "mfu": self.flops / seconds / peak_flops if peak_flops else None,
        }
        self.started, self.steps, self.tokens, self.flops = time.perf_counter(), 0, 0, 0.0
        return speed


def batch_flops(model: GPT) -> Callable[[Batch], float]:
    """Return what counts the FLOPs of a batch, forward and backward, with attention over each sequence's length."""
    per_token = functools.cache(model.train_flops_per_token)

    def flops(batch: Batch) -> float:
        rows, width = batch.inputs.shape
        return sum(length * per_token(length) for length in batch.lengths or (width,) * rows)

    return flops
