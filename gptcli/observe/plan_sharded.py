"""The plan of a run of several processes that have a part of the model each: memory of one of them, and bytes sent.

What lies there when is FSDP's order: a block is gathered into one buffer and copied out of it, the next one is on its
way meanwhile, and the buffer in which gradients were summed stays until those of the next block are there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gptcli.observe.memory import HEAP_FACTOR, Memory, Workload, fixed_bytes, pass_bytes, process_parts, whole_step
from gptcli.observe.plan_processes import (
    SharedPlan,
    divided,
    fewest_processes,
    sent_bytes,
    shared_memory,
    tensor_sizes,
)
from gptcli.train.owners import CHUNK_BYTES


class _Elements(NamedTuple):
    """The elements of a model: in all, outside of the blocks, in a block, in the largest tensor, of Muon's matrices and
    of those with one owner."""

    total: int
    outside: int
    block: int
    largest: int
    muon: int
    most_muon: int


def _elements(work: Workload, processes: int) -> _Elements:
    sizes, model = tensor_sizes(work.model, work.optim), work.model
    block = max(sum(weight.numel() for weight in each.parameters()) for each in model.blocks)
    total, own = sum(size for size, _ in sizes), [0] * processes
    for (size, by_muon), owner in zip(sizes, divided(model, work.optim, processes).owners, strict=True):
        own[owner] += size * by_muon
    inside = sum(weight.numel() for weight in model.blocks.parameters())
    return _Elements(total, total - inside, block, max(size for size, _ in sizes), sum(own), max(own))


def sharded_memory(work: Workload, processes: int, exchange: str) -> Memory:
    """Plan the peak of one process, the same for all but for a matrix more or less."""
    of = _elements(work, processes)
    short, (_, update, validation) = work.activation_size, fixed_bytes(whole_step(work))
    found = pass_bytes(work)
    held = {
        "weights": 4 * of.total // processes,
        "gradients": 4 * of.total // processes + (4 * of.total if exchange == "step" else 0),
        "optimizer state": 4 * of.most_muon + 8 * (of.total - of.muon) // processes,
    }
    gathered = 4 * of.outside + 2 * short * of.block
    sums = 2 * min(CHUNK_BYTES, 4 * of.block) if work.on_cpu else 0  # what is exchanged at once
    matrix = 4 * of.largest
    moments = [
        Memory("loss", held | {"gathered weights": gathered, "activations": found.activations,
                               "logits and head": found.loss - found.activations}),
        Memory("backward pass", held | {"gathered weights": gathered, "activations": found.activations,
                                        "backward of a block": max(0, found.first_block - found.activations),
                                        "gradients of a block": 8 * of.block + sums}),
        Memory("end of the backward pass", held | {"gathered weights": 4 * of.outside, "activations": found.last_block,
                                                   "gradients outside of blocks": 8 * of.outside + sums}),
        Memory("update", held | {"matrices": 4 * matrix, "optimizer's own work": update}),
        Memory("validation", held | {"gathered weights": gathered, "validation": validation}),
        Memory("saving", held | {"matrices": 2 * matrix}),
    ]  # fmt: skip
    peak = max(moments, key=lambda moment: moment.total_bytes)
    if not work.on_cpu:
        return peak
    coming = sum(size for part, size in peak.parts.items() if part not in held)
    slack = round((HEAP_FACTOR - 1) * coming)
    return Memory(peak.moment, peak.parts | {"heap slack": slack} | process_parts(work))


def sharded_sent_bytes(work: Workload, processes: int, exchange: str) -> int:
    """Return what each process sends to the others in a step: its rows of every weight, twice of those in blocks, its
    gradients for the others, and matrices to and from their owners."""
    of, rounds = _elements(work, processes), -(-work.micro_steps // processes)
    weights = 4 * of.outside + 2 * work.activation_size * (of.total - of.outside)
    gradients = 4 * of.total * (1 if exchange == "step" else rounds)
    return (processes - 1) * (rounds * weights + gradients + 12 * of.muon // processes) // processes


def memory_of(work: Workload, processes: int, exchange: str, *, sharded: bool, saves: bool = True) -> Memory:
    """Plan the peak of one process of several, by default of the first, which saves what is not sharded."""
    if sharded:
        return sharded_memory(work, processes, exchange)
    return shared_memory(work, processes, exchange, saves=saves)


def plan_processes(
    work: Workload,
    processes: int,
    exchange: str,
    bytes_per_second: float | None,
    usable_bytes: float,
    *,
    sharded: bool,
) -> SharedPlan:
    """Return the part of a plan that is about its processes."""

    def memory(number: int) -> Memory:
        return memory_of(work, number, exchange, sharded=sharded and number > 1)

    most = max(1, min(work.micro_steps, 1 << 16))
    return SharedPlan(
        processes=processes,
        micro_batches=work.micro_steps,
        rounds=math.ceil(work.micro_steps / processes),
        sent_bytes=(sharded_sent_bytes if sharded else sent_bytes)(work, processes, exchange),
        bytes_per_second=bytes_per_second,
        other_memory=memory_of(work, processes, exchange, sharded=sharded, saves=False),
        fewest=fewest_processes(memory, most, usable_bytes) if usable_bytes < math.inf else None,
        sharded=sharded,
    )
