"""A training step of several processes that hold the same model: each computes some of the micro-batches.

The owner of a weight (owners) adds its gradients in the order of the micro-batches, as one process alone does, so that
weights and optimizer state have the bits of one process, however many there are. It then updates the weight and sends
it to all: its optimizer state is there only (ZeRO stage 1, Rajbhandari et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.data.batches import Batch
from gptcli.device.private_torch import foreach_norm
from gptcli.device.processes import Processes, collect, exchange_parts, spread_parts
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.train.muon import Muon
from gptcli.train.optimizers import Optimizers
from gptcli.train.owners import Chunk, cut, divide, empty, fill, update_costs
from gptcli.train.step import GradientStep, Objective


class ReplicatedStep(GradientStep):
    """A step that computes `processes.count` micro-batches at a time, one in each process, or its shares apart."""

    def __init__(self, model: GPT, optimizers: Optimizers, processes: Processes) -> None:
        super().__init__(model, optimizers)
        self.processes = processes
        self.weights = list(optimizers.names)
        muon = {weight for part in optimizers.parts if isinstance(part, Muon) for weight in part.weights()}
        sizes = [weight.numel() for weight in self.weights]
        self.owners = divide(sizes, update_costs(sizes, [weight in muon for weight in self.weights]), processes.count)
        self.chunks = cut(self.owners, sizes, itemsize=self.weights[0].itemsize)
        self.owned = self.owners.owned(processes.rank)
        optimizers.keep_state([self.weights[number] for number in self.owned])
        # Made once, before what comes and goes in a step: between that they would leave holes that nothing fits.
        for number in self.owned:
            optimizers.state_of(self.weights[number])
        self.sum = self.weights[0].new_empty(self.owners.lengths[processes.rank])  # of gradients that are owned, flat
        widest = max((chunk.width for chunk in self.chunks), default=0)
        self.buffers = self.weights[0].new_empty(2, processes.count * widest)
        self.fresh = True  # nothing is in the sum yet
        self.present = torch.zeros(len(self.weights), dtype=torch.int64)  # which weights have a gradient, anywhere

    def concurrency(self, runtime: Runtime) -> int:  # noqa: ARG002
        return self.processes.count

    def forward_backward(
        self, objective: Objective, micro_batches: Sequence[Batch], targets: int, runtime: Runtime
    ) -> list[Tensor]:
        rank = self.processes.rank
        loss = torch.zeros((), device=self.weights[0].device)
        if rank < len(micro_batches):
            loss = self.forward_backward_one(objective, micro_batches[rank], targets, runtime)
        by_step = self.processes.config.exchange == "step"
        if not by_step:
            self._exchange(len(micro_batches))
        losses = self.processes.gather(loss.detach().double().cpu().view(1))
        return list(losses[: len(micro_batches), 0].to(loss.device).unbind())

    def _exchange(self, count: int) -> None:
        """Add the gradients of the first `count` processes to the sums of their owners, and clear them."""
        gradients = [weight.grad for weight in self.weights]
        self.present |= self.processes.largest_of_each(torch.tensor([int(g is not None) for g in gradients]))
        flat = [None if gradient is None else gradient.reshape(-1) for gradient in gradients]
        for chunk in self.chunks:
            parts, found = self._buffers(chunk)
            for row, pieces in zip(parts, chunk.rows, strict=True):
                fill(row, pieces, flat)
            exchange_parts(parts, found)
            own = self.sum[chunk.start : chunk.start + chunk.width]
            for sender, received in enumerate(found[:count, : len(own)]):
                if sender == 0 and self.fresh:
                    own.copy_(received)
                else:
                    own.add_(received)
        self.fresh = False
        super().zero_grad()

    def _buffers(self, chunk: Chunk) -> Tensor:
        """Return room for a chunk of every process, twice, (2, count, width)."""
        count = self.processes.count
        return self.buffers[:, : count * chunk.width].view(2, count, chunk.width)

    def grad_norm(self) -> Tensor:
        if self.processes.config.exchange == "step":
            self._exchange(self.processes.count)
        for number in self.owned:
            self.weights[number].grad = self._sum_of(number) if self.present[number] else None
        norms = torch.zeros(len(self.weights), dtype=torch.float64)
        with_gradient = [number for number in self.owned if self.present[number]]
        if with_gradient:
            found = torch.stack(foreach_norm([self._sum_of(number) for number in with_gradient]))
            norms[with_gradient] = found.double().cpu()
        norms = self.processes.gather(norms).sum(0)  # each is of its owner; float32 fits into float64
        there = norms[self.present.bool()].to(self.weights[0].dtype)
        return torch.linalg.vector_norm(there).to(self.weights[0].device)

    def _sum_of(self, number: int) -> Tensor:
        """Return the summed gradient of an owned weight, in its shape."""
        weight, place = self.weights[number], self.owners.places[number]
        return self.sum[place : place + weight.numel()].view(weight.shape)

    @torch.no_grad()
    def update(self) -> None:
        """Update the owned weights, then bring every weight to every process."""
        self.optimizers.step()
        self.zero_grad()
        flat = [weight.detach().view(-1) for weight in self.weights]
        for chunk in self.chunks:
            (own, *_), found = self._buffers(chunk)
            fill(own, chunk.rows[self.processes.rank], flat)
            spread_parts(own, found)
            for owner, pieces in enumerate(chunk.rows):
                if owner != self.processes.rank:
                    empty(found[owner], pieces, flat)

    def zero_grad(self) -> None:
        super().zero_grad()
        self.fresh = True
        self.present.zero_()

    def collect_state(self) -> None:
        """Bring the state of all optimizers to the first process, which saves it."""
        for number, owner in enumerate(self.owners.owners):
            if owner == 0 or self.processes.rank not in (0, owner):
                continue
            weight = self.weights[number]
            state = self.optimizers.state_of(weight)
            collect([state[kind] for kind in sorted(state)], owner, self.processes)

    def drop_state(self) -> None:
        """Free what collect_state brought."""
        self.optimizers.keep_state([self.weights[number] for number in self.owned])
