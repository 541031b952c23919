"""The choice of the kind of training step that suits a model and its device."""

from __future__ import annotations

import functools

import torch

from gptcli.device.cuda_graphs import record
from gptcli.device.processes import ALONE, Processes
from gptcli.model.gpt import GPT
from gptcli.train.optimizers import Optimizers
from gptcli.train.sharded import Sharded
from gptcli.train.step import GradientStep
from gptcli.train.step_cuda_graph import MAX_GRAPH_PARAMETERS, CudaGraphStep
from gptcli.train.step_paired import PairedStep
from gptcli.train.step_replicated import ReplicatedStep
from gptcli.train.step_sharded import ShardedStep


def make_gradient_step(
    model: GPT, optimizers: Optimizers, processes: Processes = ALONE, sharded: Sharded | None = None
) -> GradientStep:
    """Return the step that computes a model in the least time where it lies."""
    if sharded is not None:
        return ShardedStep(sharded, optimizers)
    if not processes.alone:
        return ReplicatedStep(model, optimizers, processes)
    device = model.embedding.weight.device.type
    if device == "cpu":
        return PairedStep(model, optimizers)
    small = model.num_parameters() <= MAX_GRAPH_PARAMETERS
    if device == "cuda" and small and not model.activation_checkpointing:
        return CudaGraphStep(model, optimizers, record=functools.partial(record, pool=torch.cuda.graph_pool_handle()))
    return GradientStep(model, optimizers)
