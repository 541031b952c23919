"""Measure several processes beside one: what they send to each other, and a step that they share."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptcli.base.errors import ConfigError
from gptcli.base.report import Report
from gptcli.base.units import amount, duration
from gptcli.config.train import PretrainConfig
from gptcli.data.size import find_vocabulary
from gptcli.device.machine import synchronize
from gptcli.device.processes import Processes, joined
from gptcli.device.runtime import Runtime, make_runtime
from gptcli.observe.step_times import step_times

SIZES_BYTES = (1 << 16, 1 << 20, 1 << 24, 1 << 26)
REDUCTIONS, REDUCTION_SECONDS = 5, 0.5  # of each size at least so many, and more while time is left


@dataclass(frozen=True)
class AllReduce:
    """The time in which all processes have the sum of a tensor that each has."""

    tensor_bytes: int
    seconds: float  # the median
    processes: int

    @property
    def bus_bytes_per_second(self) -> float:
        """Return what each process sends in the best way, 2 (n - 1) / n of the tensor, by the time: comparable between
        numbers of processes, and with what nccl-tests calls busbw."""
        return 2 * (self.processes - 1) / self.processes * self.tensor_bytes / self.seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "bytes": self.tensor_bytes,
            "seconds": self.seconds,
            "bus_bytes_per_second": self.bus_bytes_per_second,
        }


@dataclass(frozen=True)
class ProcessesSpeed:
    """The result of `gptcli bench RUN.yaml --processes N`."""

    processes: int
    backend: str
    all_reduce: Sequence[AllReduce]
    tokens_per_step: int
    one: Sequence[float]  # seconds of each measured step of one process
    all: Sequence[float]  # of the same step, shared by all

    @property
    def speedup(self) -> float:
        return statistics.median(self.one) / statistics.median(self.all)

    def as_dict(self) -> dict[str, Any]:
        return {
            "processes": self.processes,
            "backend": self.backend,
            "all_reduce": [each.as_dict() for each in self.all_reduce],
            "tokens_per_step": self.tokens_per_step,
            "one_process": self._step(self.one),
            "all_processes": self._step(self.all),
            "speedup": self.speedup,
            "efficiency": self.speedup / self.processes,
        }

    def _step(self, seconds: Sequence[float]) -> dict[str, float]:
        median = statistics.median(seconds)
        return {
            "step_seconds": median,
            "step_seconds_min": min(seconds),
            "step_seconds_max": max(seconds),
            "steps": len(seconds),
            "tokens_per_second": self.tokens_per_step / median,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        reductions = [
            (
                f"all-reduce of {amount(each.tensor_bytes, 'B')}",
                f"{duration(each.seconds)}, {amount(each.bus_bytes_per_second, 'B/s')} from each ({self.backend})",
            )
            for each in self.all_reduce
        ]
        steps = [
            (name, f"{duration(found['step_seconds'])} ({duration(found['step_seconds_min'])}.."
                   f"{duration(found['step_seconds_max'])}), {found['tokens_per_second']:,.0f} tokens/s")
            for name, found in (("a step in one process", self._step(self.one)),
                                (f"a step in {self.processes}", self._step(self.all)))
        ]  # fmt: skip
        return [*reductions, *steps, ("speedup", f"{self.speedup:.2f}, {self.speedup / self.processes:.0%} of ideal")]


def bench_processes(config: PretrainConfig, *, report: Report) -> ProcessesSpeed | None:
    """Measure in every process of a run, as torchrun or gptcli starts them; the first returns the result.

    The one process beside them is the first, with the threads or the device that it has among the others too.
    ConfigError where a process would have nothing to do.
    """
    with joined(config.parallel, config.runtime) as processes:
        if config.train.batch_size < processes.count:
            size = config.train.batch_size
            raise ConfigError(f"train.batch_size: {size} is fewer than the {processes.count} processes; measure fewer")
        report = report if processes.is_first else Report()
        runtime = make_runtime(config.runtime, local_rank=processes.local_rank)
        model_config = dataclasses.replace(config.model, vocab_size=find_vocabulary(config)[1])
        one: list[float] = []
        report.message("measuring a step in one process")
        processes.by_first(lambda: one.extend(step_times(config, model_config, runtime)[1]))
        report.message(f"measuring {processes.count} processes")
        reductions = [_all_reduce(size, processes, runtime) for size in SIZES_BYTES]
        _, several = step_times(config, model_config, runtime, processes)
        if not processes.is_first:
            return None
        tokens = config.train.batch_size * config.model.context_length
        backend = "nccl" if runtime.device.type == "cuda" else "gloo"
        return ProcessesSpeed(processes.count, backend, reductions, tokens, one, several)


def _all_reduce(tensor_bytes: int, processes: Processes, runtime: Runtime) -> AllReduce:
    """Time reductions of float32, after two that warm up."""
    import torch.distributed as dist

    tensor = torch.ones(tensor_bytes // 4, device=runtime.device)
    times: list[float] = []
    end = time.perf_counter() + REDUCTION_SECONDS
    while processes.largest(len(times) < REDUCTIONS + 2 or time.perf_counter() < end):
        start = time.perf_counter()
        dist.all_reduce(tensor)
        synchronize(runtime.device)
        times.append(time.perf_counter() - start)
        tensor.fill_(1)
    return AllReduce(tensor_bytes, statistics.median(times[2:]), processes.count)
