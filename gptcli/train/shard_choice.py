"""The choice between processes that have a whole model each and such that have a part of it."""

from __future__ import annotations

import torch

from gptcli.config.model import ModelConfig
from gptcli.config.parallel import ParallelConfig
from gptcli.config.train import OptimConfig
from gptcli.device.machine import device_memory_bytes
from gptcli.device.processes import Processes
from gptcli.device.world import local_count
from gptcli.model.gpt import GPT


def is_sharded(
    config: ModelConfig,
    optim: OptimConfig,
    device: torch.device,
    processes: Processes,
    *,
    frozen: bool = False,
) -> bool:
    """Return whether the model is to be sharded among processes that work on devices like this one.

    `frozen`: only adapters are trained, so that the weights, which are in float32 until they are loaded, are all there
    is.
    """
    if processes.alone:
        return False
    room = device_memory_bytes(device)
    if device.type == "cpu":  # which the processes of a machine share
        room //= local_count(processes.count)
    with torch.device("meta"):
        model = GPT(config)
    whole = 4 * model.num_parameters() if frozen else whole_bytes(model, optim)
    return choose(processes.config, whole, room)


def choose(config: ParallelConfig, whole: int, room: int | None) -> bool:
    """Return what parallel.shard says, and where it says nothing whether `whole` bytes have no room in a device."""
    return (room is not None and whole > room) if config.shard is None else config.shard


def whole_bytes(model: GPT, optim: OptimConfig) -> int:
    """Return the bytes of weights, gradients and optimizer state: Muon keeps one number a weight, AdamW two."""
    muon = sum(model.get_parameter(name).numel() for name in model.matrix_shapes()) if optim.name == "muon" else 0
    return 4 * (4 * model.num_parameters() - muon)
