"""A training step of several processes, none of which holds the model: weights, gradients and state are cut by rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.device.private_torch import foreach_norm
from gptcli.device.runtime import Runtime
from gptcli.train.optimizers import Optimizers
from gptcli.train.sharded import Sharded
from gptcli.train.step import GradientStep, Objective


class ShardedStep(GradientStep):
    """A step that computes a micro-batch in each process at a time, of a model whose weights are gathered block by
    block. Gradients and state are those of the rows that this process holds; Muon's state is with a matrix's owner."""

    def __init__(self, sharded: Sharded, optimizers: Optimizers) -> None:
        super().__init__(sharded.model, optimizers)
        self.sharded, self.processes = sharded, sharded.processes
        self.by_step = self.processes.config.exchange == "step"
        self.waiting = False  # gradients that other processes have not seen

    def concurrency(self, runtime: Runtime) -> int:  # noqa: ARG002
        return self.processes.count

    def forward_backward(
        self, objective: Objective, micro_batches: Sequence[Batch], targets: int, runtime: Runtime
    ) -> list[Tensor]:
        idle = self.processes.rank >= len(micro_batches)  # then it goes through the blocks with the others for nothing
        batch = micro_batches[0 if idle else self.processes.rank]
        self.sharded.exchange_each_time(not self.by_step)
        self.waiting = self.by_step
        self.seed_dropout(batch)
        loss = self.sharded.run(lambda model: objective(model, batch, runtime))
        torch.autograd.backward(loss * 0.0 if idle else loss / targets)
        losses = self.processes.gather(loss.detach().double().cpu().view(1))
        return list(losses[: len(micro_batches), 0].to(loss.device).unbind())

    def grad_norm(self) -> Tensor:
        self._exchange()
        self.sharded.take_gradients()
        gradients = self.gradients()
        squares = torch.stack(foreach_norm(gradients)).double().square().sum().cpu().view(1)
        return self.processes.gather(squares).sum().sqrt().to(gradients[0])

    def _exchange(self) -> None:
        if self.waiting:
            self.sharded.exchange()
            self.waiting = False

    def update(self) -> None:
        self.optimizers.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        self._exchange()  # there is no other way to drop them
        self.sharded.drop_gradients()
