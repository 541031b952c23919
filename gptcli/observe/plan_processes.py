"""The cost of a run in several processes, each with the whole model: memory by process, bytes sent, devices needed.

The weights are divided among owners as train.step_replicated divides them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gptcli.base.units import amount, duration
from gptcli.config.train import OptimConfig
from gptcli.model.gpt import GPT
from gptcli.observe.memory import HEAP_FACTOR, Memory, Workload, fixed_bytes, pass_bytes, process_parts, whole_step
from gptcli.train.owners import CHUNK_BYTES, Owners, divide, update_costs


@dataclass(frozen=True)
class SharedPlan:
    """A plan's part about its processes."""

    processes: int
    micro_batches: int  # of a step, in all processes
    rounds: int  # micro-batches that one process computes after each other
    sent_bytes: int  # by each process to the others, a step
    bytes_per_second: float | None  # of the network, one way
    other_memory: Memory  # of every process but the first, which saves
    fewest: int | None  # processes that fit on the devices; None: not even as many as there are micro-batches
    sharded: bool = False  # each has a part of the model

    @property
    def busy(self) -> float:
        """Return the share of the time in which a process has a micro-batch to compute."""
        return self.micro_batches / (self.rounds * self.processes)

    @property
    def exchange_seconds(self) -> float:
        """Return the time of the bytes of a step; nothing is computed meanwhile."""
        return self.sent_bytes / self.bytes_per_second if self.bytes_per_second else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: value for name, value in asdict(self).items() if name != "other_memory"},
            "exchange_seconds": self.exchange_seconds,
            "other_memory_bytes": {**self.other_memory.parts, "total": self.other_memory.total_bytes},
        }

    def lines(self) -> list[tuple[str, str]]:
        """Format the plan for a person."""
        sent = f"{amount(self.sent_bytes, 'B')} a step from each"
        if self.bytes_per_second:
            sent += f", {duration(self.exchange_seconds)} at {amount(8 * self.bytes_per_second, 'bit/s')}"
        why = "" if self.sharded else ": each holds the whole model; parallel.shard=true cuts it among them"
        fewest = f"no number{why}" if self.fewest is None else f"{self.fewest}"
        shares = f"{self.micro_batches:,} micro-batches a step, {self.rounds:,} after each other: {self.busy:.0%} busy"
        have = ", a part of the model in each" if self.sharded else ""
        return [
            ("processes", f"{self.processes:,}{have}; {shares}"),
            ("  memory of the others", amount(self.other_memory.total_bytes, "B")),
            ("  sent", sent),
            ("  fewest that fit", fewest),
        ]


@functools.lru_cache(maxsize=4)
def tensor_sizes(model: GPT, optim: OptimConfig) -> tuple[tuple[int, bool], ...]:
    """Return of each tensor of a model its size, and whether Muon updates it."""
    muon = set(model.matrix_shapes()) if optim.name == "muon" else set()
    return tuple((weight.numel(), name in muon) for name, weight in model.named_parameters())


@functools.lru_cache(maxsize=64)
def divided(model: GPT, optim: OptimConfig, processes: int) -> Owners:
    """Return which of several processes updates which weights."""
    sizes, by_muon = map(list, zip(*tensor_sizes(model, optim), strict=True))
    return divide(sizes, update_costs(sizes, by_muon), processes)


@functools.lru_cache(maxsize=64)
def largest_state(model: GPT, optim: OptimConfig, processes: int) -> int:
    """Return the bytes of optimizer state of the process that has most: Muon keeps one number a weight, AdamW two."""
    own = [0] * processes
    owners = divided(model, optim, processes).owners
    for (size, by_muon), owner in zip(tensor_sizes(model, optim), owners, strict=True):
        own[owner] += size * (4 if by_muon else 8)
    return max(own)


def shared_memory(work: Workload, processes: int, exchange: str, *, saves: bool) -> Memory:
    """Plan the peak of one process. The first `saves`, and has all optimizer state while it does."""
    owners = divided(work.model, work.optim, processes)
    sizes = [size for size, _ in tensor_sizes(work.model, work.optim)]
    weights, largest, sums = 4 * sum(sizes), 4 * max(sizes), 4 * max(owners.lengths)
    state, update, validation = fixed_bytes(whole_step(work))
    chunk = min(CHUNK_BYTES, processes * sums)
    held = {
        "weights": weights,
        "optimizer state": largest_state(work.model, work.optim, processes),
        "buffers": 2 * chunk,
    }
    found, rounds = pass_bytes(work), -(-work.micro_steps // processes)
    stay = exchange == "step" and rounds > 1
    kept = sums + (weights if stay else 0)  # of gradients, between micro-batches
    moments = [
        Memory("loss", held | {"gradients": kept, "activations": found.activations,
                               "logits and head": found.loss - found.activations}),
        Memory("backward pass", held | {"gradients": kept + largest, "activations": found.activations,
                                        "backward of a block": max(0, found.first_block - found.activations)}),
        Memory("end of the backward pass", held | {"gradients": sums + weights, "activations": found.last_block}),
        Memory("update", held | {"gradients": sums, "optimizer's own work": update}),
    ]  # fmt: skip
    moments.append(Memory("validation", held | {"gradients": sums, "validation": validation}))
    if saves:
        moments.append(Memory("saving", held | {"gradients": sums, "optimizer state": state}))
    peak = max(moments, key=lambda moment: moment.total_bytes)
    if not work.on_cpu:
        return peak
    # Gradients come and go with each micro-batch beside activations, in one heap; gloo gathers in a copy.
    staying, gradients = sum(held.values()) + kept, largest if stay else weights
    slack = max(0, staying + chunk + gradients + round(HEAP_FACTOR * found.loss) - peak.total_bytes)
    return Memory(peak.moment, peak.parts | {"heap slack": slack} | process_parts(work))


def sent_bytes(work: Workload, processes: int, exchange: str) -> int:
    """Return what each process sends to the others in a step: gradients to their owners, and weights to all."""
    owners, rounds = divided(work.model, work.optim, processes), -(-work.micro_steps // processes)
    exchanges = rounds if exchange == "micro_batch" else 1
    parts = (exchanges + 1) * 4 * max(owners.lengths)
    return (processes - 1) * (parts + 8 * (rounds + (exchanges + 1) * len(owners.owners)))


def fewest_processes(memory: Callable[[int], Memory], most: int, usable_bytes: float) -> int | None:
    """Return the smallest power of two of processes that fits, up to `most`; each holds weights and gradients whole."""
    numbers = (1 << power for power in range(most.bit_length()) if 1 << power <= most)
    return next((number for number in numbers if memory(number).total_bytes <= usable_bytes), None)
