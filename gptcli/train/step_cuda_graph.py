"""A training step on CUDA as two graphs, for models so small that the CPU starts operations more slowly than they run.

One graph has a micro-batch's gradient and one the update; between them the loop looks at loss and gradient as ever. The
same functions run on a CPU without a graph, where tests hold them to the plain step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.device.cuda_graphs import Record, Work, recorded
from gptcli.device.private_torch import foreach_zero_
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.optimizers import Optimizers
from gptcli.train.step import GradientStep, Objective

MAX_GRAPH_PARAMETERS = 64_000_000  # recording takes, for the moment, 48 bytes of each


class CudaGraphStep(GradientStep):
    """A step that replays recordings: gradients stay where they are from the first on, as do the numbers that change.

    For one objective and micro-batches of one shape; others are computed operation by operation.
    """

    numpy_dropout = False  # a recording has PyTorch's generators

    def __init__(self, model: GPT, optimizers: Optimizers, *, record: Record) -> None:
        super().__init__(model, optimizers)
        self.record = record
        self.held: tuple[Objective, Batch, Tensor, Tensor] | None = None  # with the targets of the step, and the loss
        self.replay_gradient: Work | None = None
        self.replay_update: Work | None = None

    def forward_backward(
        self, objective: Objective, micro_batches: Sequence[Batch], targets: int, runtime: Runtime
    ) -> list[Tensor]:
        return [self._replayed(objective, batch, targets, runtime) for batch in micro_batches]

    def _replayed(self, objective: Objective, batch: Batch, targets: int, runtime: Runtime) -> Tensor:
        """Add the gradient of one micro-batch by the recording, where it fits -> its loss."""
        if self.held is None:  # the first makes the gradients
            loss = self.forward_backward_one(objective, batch, targets, runtime)
            if batch.lengths is None and batch.taught is None:
                inputs, targets_held = (ids.to(runtime.device, copy=True) for ids in (batch.inputs, batch.targets))
                fixed = Batch(inputs, targets_held, "")
                self.held = objective, fixed, torch.tensor(float(targets), device=runtime.device), loss.clone()
                self.optimizers.use_tensor_rates()
            return loss
        held_objective, fixed, divisor, held_loss = self.held
        if objective is not held_objective or batch.lengths or batch.inputs.shape != fixed.inputs.shape:
            return self.forward_backward_one(objective, batch, targets, runtime)
        self.seed_dropout(batch)
        fixed.inputs.copy_(batch.inputs)
        fixed.targets.copy_(batch.targets)
        divisor.fill_(targets)

        def work() -> None:
            loss = objective(self.model, fixed, runtime)
            torch.autograd.backward(loss / divisor)
            held_loss.copy_(loss.detach())

        if self.replay_gradient is None:
            self.replay_gradient = recorded(work, [*self.gradients(), held_loss], record=self.record)
        else:
            self.replay_gradient()
        return held_loss.clone()

    def update(self) -> None:
        if self.held is None:
            super().update()
        elif self.replay_update is None:
            weights = [weight.detach() for weight in self.optimizers.names]
            changed = [*weights, *self.gradients(), *self.optimizers.tensors(create=True).values()]
            self.replay_update = recorded(self._update, changed, record=self.record)
        else:
            self.replay_update()

    def _update(self) -> None:
        self.optimizers.step()
        foreach_zero_(self.gradients())

    def zero_grad(self) -> None:
        if self.held is None:
            super().zero_grad()
        else:
            foreach_zero_(self.gradients())
