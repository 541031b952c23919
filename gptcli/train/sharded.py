"""A model whose weights are cut by rows among several processes, by PyTorch's FSDP2 (Zhao et al. 2023; ZeRO stage 3).

A block's weights are whole while it computes, forward and backward, and those outside of the blocks while a micro-batch
does, loss included: every process calls `Sharded.run` at the same time, and what it is given does the computing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gptcli.config.train import OptimConfig
from gptcli.device.processes import Processes, exchange_parts
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.model.recompute import recomputed
from gptcli.train.muon_sharded import ShardedMuon
from gptcli.train.optimizers import Optimizers, make_optimizers
from gptcli.train.owners import CHUNK_BYTES, divide, update_costs
from gptcli.train.shards import Shards

T = TypeVar("T")


class _Root(nn.Module):
    """The module that is called, so that what works on all of a model, its head and its loss, is inside of FSDP's
    hooks."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[GPT], T]) -> T:
        return work(self.model)


class Sharded:
    """A model that is cut among processes. `parts` are the rows that this one holds, by the names of model.GPT."""

    def __init__(self, model: GPT, processes: Processes, runtime: Runtime) -> None:
        """Take a model with weights, or one on the meta device, whose weights are then to be drawn or read."""
        self.model, self.processes = model, processes
        shapes = {name: weight.shape for name, weight in model.named_parameters()}
        sizes, matrices = [shape.numel() for shape in shapes.values()], model.matrix_shapes()
        owners = divide(sizes, update_costs(sizes, [name in matrices for name in shapes]), processes.count).owners
        self.shards = Shards(list(shapes.values()), owners, processes)
        self.numbers = {name: number for number, name in enumerate(shapes)}
        is_empty = model.embedding.weight.is_meta
        if model.activation_checkpointing:
            model.activation_checkpointing = False  # here, so that it happens inside of FSDP's hooks
            for block in model.blocks:
                _recompute(block, drops=model.config.dropout > 0)
        self.root = _shard(model, processes.count, runtime)
        if is_empty:
            self.root.to_empty(device=runtime.device)
            with torch.device(runtime.device):
                model.make_tables()
        self._begin()
        weights = dict(model.named_parameters())
        self.weights: dict[str, Any] = {name: weights[name] for name in shapes}
        with torch.no_grad():
            self.parts = {
                name: nn.Parameter(weight.to_local(), requires_grad=weight.requires_grad)
                for name, weight in self.weights.items()
            }
        # Made once: FSDP's own, made in the middle of a backward pass, would leave holes that no other block fits.
        self.sums = {name: torch.empty_like(part) for name, part in self.parts.items() if part.requires_grad}
        self.summed: set[str] = set()  # those that have a gradient in this step
        for name in self.sums:
            self.weights[name].register_post_accumulate_grad_hook(functools.partial(self._add, name))

    @torch.no_grad()
    def _add(self, name: str, weight: Any) -> None:
        """Add the gradient that FSDP has just summed over the processes to those of earlier micro-batches."""
        gradient = weight.grad.to_local()
        if name in self.summed:
            self.sums[name].add_(gradient)
        else:
            self.sums[name].copy_(gradient)
        self.summed.add(name)
        weight.grad = None

    def _begin(self) -> None:
        """Gather every weight once, so that FSDP's own tensors are made as those of training are."""
        self.run(lambda _model: None)
        for block in self.model.blocks:
            block.unshard()  # type: ignore[operator]
            block.reshard()  # type: ignore[operator]
        self.root.reset_iter_state()

    def run(self, work: Callable[[GPT], T]) -> T:
        """Return what `work` makes of the model; it runs in all processes, in each with the same passes of blocks."""
        return self.root(work)

    @torch.no_grad()
    def evaluate(self, work: Callable[[GPT], T]) -> T:
        """Return what `work` makes of the model without gradients, and let go of the weights that were whole."""
        try:
            return self.run(work)
        finally:
            self.root.reset_iter_state()  # else FSDP prefetches by this order of blocks in the next backward pass

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Give the weights the values of GPT.initialize: every process draws each whole, one after another on the CPU,
        and keeps its rows."""
        for name in self.parts:
            whole = torch.empty(self.shards.shapes[self.numbers[name]])
            self.model.draw(name, whole, generator)
            self.keep_rows(name, whole)

    def whole(self, name: str) -> Tensor:
        """Return a weight whole, in every process; all ask for it at the same time."""
        tensor: Tensor = self.weights[name].full_tensor()
        return tensor.detach()

    @torch.no_grad()
    def keep_rows(self, name: str, whole: Tensor) -> None:
        """Give a weight the values of a whole one, of which this process keeps its rows."""
        self.parts[name].copy_(whole[self.shards.rows(self.numbers[name])])

    def take_gradients(self) -> None:
        """Make the gradients those of the parts."""
        for name in self.summed:
            self.parts[name].grad = self.sums[name]

    def drop_gradients(self) -> None:
        for part in self.parts.values():
            part.grad = None
        self.summed.clear()

    def exchange_each_time(self, wanted: bool) -> None:
        """Have each backward pass add its gradients to those of all processes, or only to whole ones that wait here."""
        self.root.set_requires_gradient_sync(wanted)

    def exchange(self) -> None:
        """Add the gradients that wait here to those of all processes: a backward pass with nothing to compute, after
        which FSDP looks at every part of the model."""
        self.exchange_each_time(True)
        torch.autograd.backward(self.run(lambda _model: torch.zeros((), requires_grad=True) + 0.0))


def _shard(model: GPT, count: int, runtime: Runtime) -> Any:
    """Cut a model in place; return what is to be called. Gradients are summed, in float32 where weights are."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(runtime.device.type, (count,))
    short = runtime.dtype if model.embedding.weight.dtype == torch.float32 != runtime.dtype else None
    # Blocks cast each weight to the dtype of the activations anyway; embedding and head add many rows to one.
    policy = MixedPrecisionPolicy(
        param_dtype=short, reduce_dtype=torch.float32 if short else None, cast_forward_inputs=False
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    root: Any = fully_shard(_Root(model), mesh=mesh)
    sums: Any = _OrderedSums()  # of PyTorch's protocol for it, but for what is not used here
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by the targets of the whole step
            module.set_force_sum_reduction_for_comms(True)
            if runtime.on_cpu:
                module.set_custom_reduce_scatter(sums)
    return root


class _OrderedSums:
    """The sums of gradients on CPUs, in the order of the processes. gloo's own would copy all of them first and send
    every sum to everybody."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, **_others: object) -> None:
        """Put the sum of row r of the inputs (count, N), flat, into the output (N,) of process r."""
        count = group.size()
        width = max(1, CHUNK_BYTES // input_tensor.itemsize // count)
        for parts, total in zip(
            torch.split(input_tensor.view(count, -1), width, 1), torch.split(output_tensor, width), strict=True
        ):
            found = torch.empty(parts.shape, dtype=parts.dtype)
            exchange_parts(parts.contiguous(), found)
            total.copy_(found[0])
            for received in found[1:]:
                total.add_(received)


def make_sharded_optimizers(
    sharded: Sharded, config: OptimConfig, *, step_tokens: int, dtype: torch.dtype
) -> Optimizers:
    """Return the optimizers of a model's parts, each with its state."""
    numbers = {part: sharded.numbers[name] for name, part in sharded.parts.items()}
    optimizers = make_optimizers(
        sharded.model, config, step_tokens=step_tokens, dtype=dtype, parameters=sharded.parts.items(),
        make_muon=functools.partial(ShardedMuon, shards=sharded.shards, numbers=numbers),
    )  # fmt: skip
    optimizers.tensors(create=True)  # now: made in the first step it would lie between what that step frees
    return optimizers


def _recompute(block: nn.Module, *, drops: bool) -> None:
    """Have a block keep its input alone, and compute the rest again for the backward pass."""
    forward = block.forward

    def again(x: Tensor, *arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x, *arguments)
        return recomputed(forward, x, arguments, list(block.parameters()), drops=drops)

    block.forward = again
