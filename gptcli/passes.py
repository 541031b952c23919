"""What a training step computes: gradients of micro-batches, then the update.

Operation by operation; or, for a model so small that the CPU starts operations more slowly than CUDA runs them, as two
graphs, of a micro-batch's gradients and of the update. Between them the loop looks at loss and gradient as ever.

The same functions run on a CPU without a graph, where tests hold them to the plain ones; nobody has run them on CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.hardware.graphs import Record, Work, record, recorded
from gptcli.model import GPT
from gptcli.optim import Optimizers
from gptcli.runtime import Runtime

Objective = Callable[[GPT, Batch, Runtime], Tensor]  # what is minimised, summed over the targets of a batch

GRAPH_PARAMETERS = 64_000_000  # of a model whose steps are recorded, which takes 48 bytes of each for the moment


class Passes:
    """Operation by operation."""

    def __init__(self, model: GPT, optimizers: Optimizers) -> None:
        self.model, self.optimizers = model, optimizers

    def gradient(self, objective: Objective, batch: Batch, targets: int, runtime: Runtime) -> Tensor:
        """Add the gradients of a micro-batch's loss, divided by the targets of the step -> the loss, a scalar."""
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
    if model.embedding.weight.device.type != "cuda" or model.num_parameters() > GRAPH_PARAMETERS:
        return Passes(model, optimizers)
    return GraphPasses(model, optimizers, record=functools.partial(record, pool=torch.cuda.graph_pool_handle()))
