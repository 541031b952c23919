"""The cut of a step's batch into micro-batches, whose gradients add up to the batch's."""

from __future__ import annotations

from gptcli.config.train import TrainConfig

CPU_MICRO_TOKENS = 1024  # matrix products of so many rows are as fast as longer ones, and what they keep fits a cache


def micro_batch_rows(config: TrainConfig, context_length: int, *, on_cpu: bool, processes: int = 1) -> int:
    """Return the sequences of one forward pass: as given, or the whole batch, or on a CPU as few as make
    CPU_MICRO_TOKENS; where they are not given, so few that every one of `processes` has a share."""
    if config.micro_batch_size:
        return config.micro_batch
    most = max(1, config.batch_size // processes)
    divisors = [rows for rows in range(1, most + 1) if config.batch_size % rows == 0]
    enough = (rows for rows in divisors if rows * context_length >= CPU_MICRO_TOKENS)
    return next(enough, divisors[-1]) if on_cpu else divisors[-1]
