"""The parts of a training step: gradients of micro-batches, their norm, clipping, and the update.

`loop.train_step` calls them in this order. Four subclasses compute the same step: PairedStep on a CPU, two
micro-batches at a time, CudaGraphStep for small models on CUDA, ReplicatedStep and ShardedStep across processes;
step_choice picks one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.device.private_torch import foreach_mul_, foreach_norm
from gptcli.device.runtime import Runtime
from gptcli.model import dropout
from gptcli.model.gpt import GPT
from gptcli.train.optimizer_base import optimizer_batches
from gptcli.train.optimizers import Optimizers

Objective = Callable[[GPT, Batch, Runtime], Tensor]  # what is minimised, summed over the targets of a batch
T = TypeVar("T")


class GradientStep:
    """A step computed operation by operation, one micro-batch after another. Gradients are in `weight.grad`."""

    numpy_dropout = True  # on a CPU, where PyTorch has one generator for all threads

    def __init__(self, model: GPT, optimizers: Optimizers) -> None:
        self.model, self.optimizers = model, optimizers

    def concurrency(self, runtime: Runtime) -> int:  # noqa: ARG002
        """Return how many micro-batches `forward_backward` computes at the same time."""
        return 1

    def forward_backward(
        self, objective: Objective, micro_batches: Sequence[Batch], targets: int, runtime: Runtime
    ) -> list[Tensor]:
        """Add the gradients of the micro-batches' losses / `targets`; return the losses, scalars, not divided.

        `targets` are those of the whole step; there are at most `concurrency` micro-batches.
        """
        return [self.forward_backward_one(objective, batch, targets, runtime) for batch in micro_batches]

    def forward_backward_one(self, objective: Objective, batch: Batch, targets: int, runtime: Runtime) -> Tensor:
        """Add the gradient of one micro-batch's loss / `targets`; return the loss."""
        self.seed_dropout(batch)
        loss = objective(self.model, batch, runtime)
        torch.autograd.backward(loss / targets)
        return loss.detach()

    def seed_dropout(self, batch: Batch) -> None:
        """Seed this thread's dropout from the batch, so that its masks depend on nothing else."""
        if batch.seed is not None:
            on_cpu = self.model.embedding.weight.device.type == "cpu"
            compiled = bool(self.model.compiled_blocks)
            dropout.seed(batch.seed, numpy=self.numpy_dropout and on_cpu, compiled=compiled)

    def grad_norm(self) -> Tensor:
        """Return the L2 norm of the gradient, a float32 scalar."""
        norms = self.run_over_weights(functools.partial(foreach_norm, part) for part in self._gradient_batches())
        return torch.linalg.vector_norm(torch.stack([norm for part in norms for norm in part]))

    def clip(self, max_norm: float, norm: Tensor) -> None:
        """Scale the gradient, whose norm is `norm`, down to `max_norm` where it is longer."""
        factor = (max_norm / (norm + 1e-6)).clamp(max=1)
        self.run_over_weights(functools.partial(foreach_mul_, part, factor) for part in self._gradient_batches())

    def update(self) -> None:
        """Apply the optimizers' step, then clear the gradients."""
        self.run_over_weights(self.optimizers.pieces())
        self.zero_grad()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.optimizers.zero_grad()

    def collect_state(self) -> None:
        """Make the state of all optimizers whole in the process that saves it."""

    def drop_state(self) -> None:
        """Free what collect_state took."""

    def run_parallel(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Run tasks whose order does not matter -> what each returns, in their order."""
        return [task() for task in tasks]

    def run_over_weights(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Run tasks that each read or write some of the weights -> what each returns, in their order."""
        return self.run_parallel(tasks)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all weights that have one."""
        return [weight.grad for weight in self.optimizers.names if weight.grad is not None]

    def _gradient_batches(self) -> list[list[Tensor]]:
        """Return the gradients, as many at a time as an optimizer updates."""
        gradients = self.gradients()
        return [gradients[part] for part in optimizer_batches(gradients)]
