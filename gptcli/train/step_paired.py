"""A training step on a CPU: two micro-batches at a time, each by half of the threads.

What one multiplies, the other moves through memory meanwhile, and fewer threads wait for each other at every operation.
Gradients are added in the order of one micro-batch after another, so that the bits are the same. The two threads share
the update, too: a thread of OpenMP that is left idle spins for a while, on a core that the second thread needs.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.device.private_torch import foreach_add_
from gptcli.device.runtime import Runtime
from gptcli.device.threads import second_thread
from gptcli.model.gpt import GPT
from gptcli.train.optimizer_base import optimizer_batches
from gptcli.train.optimizers import Optimizers
from gptcli.train.step import GradientStep, Objective, T

MAX_PAIRED_PARAMETERS = 256_000_000  # a second set of gradients then takes a gigabyte
FEW_TOKENS = 256  # take one thread no longer than two, and MKL adds up products of a few rows by the number of threads
MIN_SHARED_PARAMETERS = 4_000_000  # the update of a smaller model waits for Python's lock longer than two threads save


def can_pair(model: GPT, threads: int) -> bool:
    """Return whether a CPU computes two micro-batches of the model at a time.

    Not with compiled dropout, whose random numbers come from one generator for all threads.
    """
    return (
        threads > 1
        and not (model.config.dropout and model.compiled_blocks)
        and model.num_parameters() <= MAX_PAIRED_PARAMETERS
    )


class PairedStep(GradientStep):
    """A step that computes two micro-batches at a time where `can_pair` allows it."""

    def __init__(self, model: GPT, optimizers: Optimizers) -> None:
        super().__init__(model, optimizers)
        self.fresh = True
        self.shares_update = model.num_parameters() >= MIN_SHARED_PARAMETERS

    def concurrency(self, runtime: Runtime) -> int:
        return 2 if can_pair(self.model, runtime.threads) else 1

    def forward_backward(
        self, objective: Objective, micro_batches: Sequence[Batch], targets: int, runtime: Runtime
    ) -> list[Tensor]:
        if len(micro_batches) == 1 and micro_batches[0].inputs.numel() <= FEW_TOKENS:
            with _one_thread():
                return super().forward_backward(objective, micro_batches, targets, runtime)
        weights = list(self.optimizers.names)
        first = all(weight.grad is None for weight in weights)  # the sum of two is the same in either order
        if first or len(micro_batches) == 1:
            return self.run_parallel(
                functools.partial(self.forward_backward_one, objective, batch, targets, runtime)
                for batch in micro_batches
            )
        one, other = micro_batches

        def into_new_tensors() -> tuple[Tensor, Sequence[Tensor | None]]:
            self.seed_dropout(other)
            loss = objective(self.model, other, runtime)
            return loss.detach(), torch.autograd.grad(loss / targets, weights, allow_unused=True)

        def into_gradients() -> tuple[Tensor, Sequence[Tensor | None]]:
            return self.forward_backward_one(objective, one, targets, runtime), ()

        (loss, _), (other_loss, more) = self.run_parallel((into_gradients, into_new_tensors))
        self._add(weights, more)
        return [loss, other_loss]

    def _add(self, weights: Sequence[torch.nn.Parameter], more: Sequence[Tensor | None]) -> None:
        """Add gradients to those of the weights."""
        sums, terms = [], []
        for weight, gradient in zip(weights, more, strict=True):
            if weight.grad is None:
                weight.grad = gradient
            elif gradient is not None:
                sums.append(weight.grad)
                terms.append(gradient)
        if sums:
            parts = list(optimizer_batches(sums))
            self.run_over_weights(functools.partial(foreach_add_, sums[part], terms[part]) for part in parts)

    def run_over_weights(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        return self.run_parallel(tasks) if self.shares_update else super().run_parallel(tasks)

    def run_parallel(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        waiting = list(tasks)
        threads = torch.get_num_threads()
        if len(waiting) == 1 or not can_pair(self.model, threads):
            return super().run_parallel(waiting)
        compiles = self.fresh and bool(self.model.compiled_blocks)  # two threads that compile the same would fail
        self.fresh = False
        return run_in_two_threads(waiting, threads, alone=compiles)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_in_two_threads(tasks: Sequence[Callable[[], T]], threads: int, *, alone: bool = False) -> list[T]:
    """Run tasks in this and a second thread, each with half of `threads` -> what each returns, in their order.

    `alone`: this thread does it all, with its half.
    """
    found: dict[int, T] = {}
    waiting = deque(enumerate(tasks))  # popleft() gives each task to one thread, with Python's lock and without

    def work() -> None:
        torch.set_num_threads(threads // 2)  # of an odd number one is idle: two tasks last as long as the slower
        while True:
            try:
                number, task = waiting.popleft()
            except IndexError:
                return
            found[number] = task()

    second = None if alone else second_thread().submit(work)
    try:
        work()
    finally:
        if second:
            second.exception()  # waits for it
        torch.set_num_threads(threads)
    if second:
        second.result()
    return [found[number] for number in range(len(tasks))]
