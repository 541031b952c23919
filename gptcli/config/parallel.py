"""The `parallel` section of a run file: how several processes share the work of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gptcli.config.schema import Section, number, value


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig(Section):
    """Several processes, of `--nproc`, torchrun or Slurm: each holds the whole model, or all of them hold a part of it.
    One process ignores all this."""

    replicate: int | None = number(
        None,
        "processes that train copies of the model; null: as many as were started",
        ge=1,
        le=1 << 16,
        may_change=True,
    )
    shard: bool | None = value(
        None,
        "shard weights, gradients and optimizer state over the processes; null: where a device cannot hold them whole",
        may_change=True,
    )
    exchange: Literal["micro_batch", "step"] = value(
        "micro_batch",
        "exchange gradients after each micro-batch (bits of one process), or once a step (fewer bytes, to rounding; "
        "where weights are sharded, with room for whole gradients)",
        may_change=True,
    )
    timeout_seconds: int = number(
        600, "a step ends with an error where a process is silent for so long", ge=1, le=1 << 22, may_change=True
    )
