"""What a training step computes: gradients of micro-batches, then the update.

On a CPU two micro-batches at a time, each by half of the threads: what one multiplies, the other moves through memory
meanwhile, and fewer threads wait for each other at every operation. On 2 cores of Zen 5 a step of 6 layers, 384 wide,
takes 3 % less time where memory is fast and 12 % where it is slow; of 4 layers, 128 wide, 1 to 10 %, of GPT-2 124M 6 %.
Micro-batches of half the size, so that there are two, lose 3 to 30 %. Gradients are added in the order of one after
another. The two threads share the update, too: a thread of OpenMP that is left idle spins for a while, on a core that
the second thread needs.

On CUDA, for a model so small that the CPU starts operations more slowly than the device runs them, as two graphs, of a
micro-batch's gradients and of the update. Between them the loop looks at loss and gradient as ever. The same functions
run on a CPU without a graph, where tests hold them to the plain ones; nobody has run them on CUDA.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.device.cuda_graphs import Record, Work, record, recorded
from gptcli.device.runtime import Runtime
from gptcli.device.threads import second_thread
from gptcli.model import dropout
from gptcli.model.gpt import GPT
from gptcli.train.optimizers import Optimizers, batches

Objective = Callable[[GPT, Batch, Runtime], Tensor]  # what is minimised, summed over the targets of a batch
Before = Callable[[int, Batch], None]
T = TypeVar("T")

PAIRED_PARAMETERS = 256_000_000
SHARED_PARAMETERS = 4_000_000  # of a model whose update two threads share: 1 to 2 %; of a million it costs 3 %
GRAPH_PARAMETERS = 64_000_000  # of a model whose steps are recorded, which takes 48 bytes of each for the moment


class Passes:
    """Operation by operation, one micro-batch after another."""

    by_numpy = True  # dropout on a CPU

    def __init__(self, model: GPT, optimizers: Optimizers) -> None:
        self.model, self.optimizers = model, optimizers

    def gradients(
        self,
        objective: Objective,
        micro_batches: Iterable[Batch],
        targets: int,
        runtime: Runtime,
        *,
        before: Before,
        seed_of: Callable[[int], int],
    ) -> list[Tensor]:
        """Add the gradients of the losses, each divided by the targets of the step -> the losses, scalars.

        `before` gets each micro-batch, or the first of those at once, with its number; what it raises ends the step.
        `seed_of` gives the seed of dropout for a micro-batch's number.
        """
        losses: list[Tensor] = []
        waiting = iter(micro_batches)
        while group := tuple(itertools.islice(waiting, self.at_once(runtime))):
            before(len(losses), group[0])
            if self.model.config.dropout:
                seeds = map(seed_of, itertools.count(len(losses)))
                group = tuple(batch._replace(seed=seed) for batch, seed in zip(group, seeds, strict=False))
            losses += self.beside(objective, group, targets, runtime)
        return losses

    def at_once(self, runtime: Runtime) -> int:  # noqa: ARG002
        """How many micro-batches are computed beside each other."""
        return 1

    def beside(self, objective: Objective, group: tuple[Batch, ...], targets: int, runtime: Runtime) -> list[Tensor]:
        """The gradients and losses of so many, or of fewer at the end."""
        return [self.gradient(objective, batch, targets, runtime) for batch in group]

    def gradient(self, objective: Objective, batch: Batch, targets: int, runtime: Runtime) -> Tensor:
        """Those of one micro-batch."""
        self.begin(batch)
        loss = objective(self.model, batch, runtime)
        torch.autograd.backward(loss / targets)
        return loss.detach()

    def begin(self, batch: Batch) -> None:
        """What this thread drops in a micro-batch."""
        if batch.seed is not None:
            dropout.seed(batch.seed, by_numpy=self.by_numpy)

    def norm(self) -> Tensor:
        """The L2 norm of the gradient."""
        norms = self.over_weights(functools.partial(torch._foreach_norm, part) for part in self._parts())
        return torch.linalg.vector_norm(torch.stack([norm for part in norms for norm in part]))

    def clip(self, max_norm: float, norm: Tensor) -> None:
        """Shorten a gradient whose norm is larger."""
        factor = (max_norm / (norm + 1e-6)).clamp(max=1)
        self.over_weights(functools.partial(torch._foreach_mul_, part, factor) for part in self._parts())

    def update(self) -> None:
        """Change the weights by their gradients, which are gone then."""
        self.over_weights(self.optimizers.pieces())
        self.drop()

    def all(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Do what can be done in any order -> what each gives."""
        return [task() for task in tasks]

    def over_weights(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """The same, for tasks that each have some of the weights."""
        return self.all(tasks)

    def _parts(self) -> list[list[Tensor]]:
        """The gradients, as many at a time as an optimizer takes."""
        gradients = self._gradients()
        return [gradients[part] for part in batches(gradients)]

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self.optimizers.names if weight.grad is not None]

    def drop(self) -> None:
        """Forget the gradients."""
        self.optimizers.zero_grad()


def pairs(model: GPT, threads: int) -> bool:
    """Whether a CPU computes two micro-batches at a time: not with compiled dropout, whose random numbers come from one
    generator for all threads, and not where a second set of gradients takes a gigabyte."""
    return (
        threads > 1
        and not (model.config.dropout and model.compiled_blocks)
        and model.num_parameters() <= PAIRED_PARAMETERS
    )


class PairedPasses(Passes):
    """Two micro-batches at a time, where `pairs` says so."""

    def __init__(self, model: GPT, optimizers: Optimizers) -> None:
        super().__init__(model, optimizers)
        self.fresh = True
        self.shares_update = model.num_parameters() >= SHARED_PARAMETERS

    def at_once(self, runtime: Runtime) -> int:
        return 2 if pairs(self.model, runtime.threads) else 1

    def beside(self, objective: Objective, group: tuple[Batch, ...], targets: int, runtime: Runtime) -> list[Tensor]:
        weights = list(self.optimizers.names)
        first = all(weight.grad is None for weight in weights)  # the sum of two is the same in either order
        if first or len(group) == 1:
            return self.all(functools.partial(self.gradient, objective, batch, targets, runtime) for batch in group)
        one, other = group

        def apart() -> tuple[Tensor, Sequence[Tensor | None]]:
            self.begin(other)
            loss = objective(self.model, other, runtime)
            return loss.detach(), torch.autograd.grad(loss / targets, weights, allow_unused=True)

        def added() -> tuple[Tensor, Sequence[Tensor | None]]:
            return self.gradient(objective, one, targets, runtime), ()

        (loss, _), (other_loss, others) = self.all((added, apart))
        have, more = [], []
        for weight, gradient in zip(weights, others, strict=True):
            if weight.grad is None:
                weight.grad = gradient
            elif gradient is not None:
                have.append(weight.grad)
                more.append(gradient)
        if have:
            parts = list(batches(have))
            self.over_weights(functools.partial(torch._foreach_add_, have[part], more[part]) for part in parts)
        return [loss, other_loss]

    def over_weights(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        return self.all(tasks) if self.shares_update else super().all(tasks)

    def all(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        waiting = list(tasks)
        threads = torch.get_num_threads()
        if len(waiting) == 1 or not pairs(self.model, threads):
            return super().all(waiting)
        found: dict[int, T] = {}
        numbers = iter(range(len(waiting)))  # whoever is free takes the next: one step of it is atomic

        def work() -> None:
            torch.set_num_threads(threads // 2)  # of an odd number one is idle: two passes last as long as the slower
            for number in numbers:
                found[number] = waiting[number]()

        compiles = self.fresh and bool(self.model.compiled_blocks)
        self.fresh = False
        there = None if compiles else second_thread().submit(work)  # two threads that compile the same would fail
        try:
            work()
        finally:
            if there:
                there.exception()  # waits for it
            torch.set_num_threads(threads)
        if there:
            there.result()
        return [found[number] for number in range(len(waiting))]


class GraphPasses(Passes):
    """As graphs: gradients stay where they are from the first on, and so do the numbers that change with the step.

    For one objective and micro-batches of one shape; others are computed operation by operation.
    """

    by_numpy = False  # a recording has PyTorch's generators

    def __init__(self, model: GPT, optimizers: Optimizers, *, record: Record) -> None:
        super().__init__(model, optimizers)
        self.record = record
        self.held: tuple[Objective, Batch, Tensor, Tensor] | None = None  # with the targets of the step, and the loss
        self.add_gradients: Work | None = None
        self.apply: Work | None = None

    def gradient(self, objective: Objective, batch: Batch, targets: int, runtime: Runtime) -> Tensor:
        if self.held is None:  # the first makes the gradients
            loss = super().gradient(objective, batch, targets, runtime)
            if batch.lengths is None:
                inputs, targets_held = (ids.to(runtime.device, copy=True) for ids in (batch.inputs, batch.targets))
                fixed = Batch(inputs, targets_held, "")
                self.held = objective, fixed, torch.tensor(float(targets), device=runtime.device), loss.clone()
                self.optimizers.fix()
            return loss
        held_objective, fixed, divisor, held_loss = self.held
        if objective is not held_objective or batch.lengths or batch.inputs.shape != fixed.inputs.shape:
            return super().gradient(objective, batch, targets, runtime)
        self.begin(batch)
        fixed.inputs.copy_(batch.inputs)
        fixed.targets.copy_(batch.targets)
        divisor.fill_(targets)

        def work() -> None:
            loss = objective(self.model, fixed, runtime)
            torch.autograd.backward(loss / divisor)
            held_loss.copy_(loss.detach())

        if self.add_gradients is None:
            self.add_gradients = recorded(work, [*self._gradients(), held_loss], record=self.record)
        else:
            self.add_gradients()
        return held_loss.clone()

    def update(self) -> None:
        if self.held is None:
            super().update()
        elif self.apply is None:
            weights = [weight.detach() for weight in self.optimizers.names]
            changed = [*weights, *self._gradients(), *self.optimizers.tensors(create=True).values()]
            self.apply = recorded(self._update, changed, record=self.record)
        else:
            self.apply()

    def _update(self) -> None:
        self.optimizers.step()
        torch._foreach_zero_(self._gradients())

    def drop(self) -> None:
        if self.held is None:
            super().drop()
        else:
            torch._foreach_zero_(self._gradients())


def make_passes(model: GPT, optimizers: Optimizers) -> Passes:
    """Those that suit the model and its device."""
    device = model.embedding.weight.device.type
    if device == "cpu":
        return PairedPasses(model, optimizers)
    if device == "cuda" and model.num_parameters() <= GRAPH_PARAMETERS:
        return GraphPasses(model, optimizers, record=functools.partial(record, pool=torch.cuda.graph_pool_handle()))
    return Passes(model, optimizers)
