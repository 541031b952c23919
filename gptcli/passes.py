"""What a training step computes: gradients of micro-batches, then the update.

On a CPU two micro-batches at a time, each by half of the threads: what one multiplies, the other moves through memory
meanwhile, and fewer threads wait for each other at every operation. 9 to 12 % of a step of 6 layers, 384 wide, on 2
cores of Zen 5. Gradients are added in the order of one after another.

On CUDA, for a model so small that the CPU starts operations more slowly than the device runs them, as two graphs, of a
micro-batch's gradients and of the update. Between them the loop looks at loss and gradient as ever. The same functions
run on a CPU without a graph, where tests hold them to the plain ones; nobody has run them on CUDA.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.hardware.graphs import Record, Work, record, recorded
from gptcli.model import GPT
from gptcli.optim import Optimizers
from gptcli.runtime import Runtime

Objective = Callable[[GPT, Batch, Runtime], Tensor]  # what is minimised, summed over the targets of a batch
Before = Callable[[int, Batch], None]

GRAPH_PARAMETERS = 64_000_000  # of a model whose steps are recorded, which takes 48 bytes of each for the moment


class Passes:
    """Operation by operation, one micro-batch after another."""

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
    ) -> list[Tensor]:
        """Add the gradients of the losses, each divided by the targets of the step -> the losses, scalars.

        `before` gets each micro-batch, or the first of two, with its number; what it raises ends the step.
        """
        losses = []
        for number, batch in enumerate(micro_batches):
            before(number, batch)
            losses.append(self.gradient(objective, batch, targets, runtime))
        return losses

    def gradient(self, objective: Objective, batch: Batch, targets: int, runtime: Runtime) -> Tensor:
        """Those of one micro-batch."""
        loss = objective(self.model, batch, runtime)
        torch.autograd.backward(loss / targets)
        return loss.detach()

    def update(self) -> None:
        """Change the weights by their gradients, which are gone then."""
        self.optimizers.step()
        self.drop()

    def drop(self) -> None:
        """Forget the gradients."""
        self.optimizers.zero_grad()


class PairedPasses(Passes):
    """Two micro-batches at a time; not with dropout, whose random numbers come from one generator for all threads."""

    def __init__(self, model: GPT, optimizers: Optimizers) -> None:
        super().__init__(model, optimizers)
        self.helpers: list[ThreadPoolExecutor] = []

    def gradients(
        self,
        objective: Objective,
        micro_batches: Iterable[Batch],
        targets: int,
        runtime: Runtime,
        *,
        before: Before,
    ) -> list[Tensor]:
        if runtime.threads < 2 or self.model.config.dropout:
            return super().gradients(objective, micro_batches, targets, runtime, before=before)
        losses: list[Tensor] = []
        waiting = iter(micro_batches)
        while pair := tuple(itertools.islice(waiting, 2)):
            before(len(losses), pair[0])
            if len(pair) == 1:
                losses.append(self.gradient(objective, pair[0], targets, runtime))
            else:
                losses += self._pair(objective, pair[0], pair[1], targets, runtime)
        return losses

    def _pair(self, objective: Objective, one: Batch, other: Batch, targets: int, runtime: Runtime) -> list[Tensor]:
        weights = list(self.optimizers.names)

        def apart() -> tuple[Tensor, tuple[Tensor | None, ...]]:
            loss = objective(self.model, other, runtime)
            return loss.detach(), torch.autograd.grad(loss / targets, weights, allow_unused=True)

        first, second = self._helpers(runtime.threads)
        there = second.submit(apart)
        here = first.submit(self.gradient, objective, one, targets, runtime)
        for running in (here, there):
            running.exception()  # waits for it
        loss, (other_loss, others) = here.result(), there.result()
        have, more = [], []
        for weight, gradient in zip(weights, others, strict=True):
            if gradient is not None:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                have.append(weight.grad)
                more.append(gradient)
        torch._foreach_add_(have, more)
        return [loss, other_loss]

    def _helpers(self, threads: int) -> list[ThreadPoolExecutor]:
        """Two threads of Python, each with its share of the threads of an operation."""
        if not self.helpers:
            for share in (threads - threads // 2, threads // 2):
                helper = ThreadPoolExecutor(1)
                helper.submit(torch.get_num_threads).result()  # else a thread's first operation sets the number anew
                helper.submit(torch.set_num_threads, share).result()
                self.helpers.append(helper)
            torch.set_num_threads(threads)  # of this one, and of any that begin later
        return self.helpers


class GraphPasses(Passes):
    """As graphs: gradients stay where they are from the first on, and so do the numbers that change with the step.

    For one objective and micro-batches of one shape; others are computed operation by operation.
    """

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
                fixed = Batch(batch.inputs.to(runtime.device), batch.targets.to(runtime.device), "")
                self.held = objective, fixed, torch.tensor(float(targets), device=runtime.device), loss.clone()
                self.optimizers.fix()
            return loss
        held_objective, fixed, divisor, held_loss = self.held
        if objective is not held_objective or batch.lengths or batch.inputs.shape != fixed.inputs.shape:
            return super().gradient(objective, batch, targets, runtime)
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

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self.optimizers.names if weight.grad is not None]


def make_passes(model: GPT, optimizers: Optimizers) -> Passes:
    """Those that suit the model and its device."""
    device = model.embedding.weight.device.type
    if device == "cpu":
        return PairedPasses(model, optimizers)
    if device == "cuda" and model.num_parameters() <= GRAPH_PARAMETERS:
        return GraphPasses(model, optimizers, record=functools.partial(record, pool=torch.cuda.graph_pool_handle()))
    return Passes(model, optimizers)
