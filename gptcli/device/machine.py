"""Measurements of this machine: matrix products, and reading from memory.

On a machine with other work the figures are what is left for us: each is the best of several trials.
"""

from __future__ import annotations

import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gptcli.device.cpus import available_cpus

MATRIX_SIZES = {"cpu": (512, 1024), "cuda": (2048, 8192)}  # the larger where it does not take too long
READ_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # far beyond the last-level cache
TRIAL_SECONDS = 0.25
MIN_TRIALS = 3
LONGEST_PRODUCT_SECONDS = 2.0


@dataclass(frozen=True)
class Machine:
    """One device and the process's share of its host."""

    device: str
    processor: str
    cores: int
    threads: int
    memory_bytes: int
    float32_flops_per_second: float
    bfloat16_flops_per_second: float
    read_bytes_per_second: float

    def flops_per_second(self, dtype: torch.dtype) -> float:
        """Return the peak of matrix products in `dtype`, float32 or bfloat16."""
        return self.bfloat16_flops_per_second if dtype == torch.bfloat16 else self.float32_flops_per_second


def measure(device: torch.device) -> Machine:
    """Measure a device with the threads that the process has, in about a second."""
    return Machine(
        device=str(device),
        processor=processor_name(device),
        cores=available_cpus(),
        threads=torch.get_num_threads(),
        memory_bytes=device_memory_bytes(device),
        float32_flops_per_second=matmul_peak(device, torch.float32),
        bfloat16_flops_per_second=matmul_peak(device, torch.bfloat16),
        read_bytes_per_second=read_bytes_per_second(device),
    )


def matmul_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = TRIAL_SECONDS) -> float:
    """Return the FLOP/s of the best of several square matrix products. A CPU without bfloat16 emulates it, slowly."""
    best = 0.0
    for size in MATRIX_SIZES.get(device.type, MATRIX_SIZES["cpu"]):
        if best and 2 * size**3 / best > LONGEST_PRODUCT_SECONDS:
            break
        a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        out = torch.empty_like(a)
        work = functools.partial(torch.mm, a, b, out=out)
        best = max(best, 2 * size**3 / best_seconds(work, device, seconds))
    return best


def read_bytes_per_second(device: torch.device) -> float:
    """Return the bandwidth of reading memory once, in a matrix-vector product: what decoding one text does."""
    size = READ_BYTES.get(device.type, READ_BYTES["cpu"])
    rows = size // 4 // 4096
    matrix, vector = torch.ones(rows, 4096, device=device), torch.ones(4096, device=device)
    out = torch.empty(rows, device=device)
    return rows * 4096 * 4 / best_seconds(functools.partial(torch.mv, matrix, vector, out=out), device, TRIAL_SECONDS)


def best_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the seconds of the shortest of as many runs of `work` as fit, after one that warms up."""
    work()
    times: list[float] = []
    synchronize(device)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < MIN_TRIALS:
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_memory_bytes(device: torch.device) -> int:
    """Return all bytes of the device's memory; of a CPU, what the machine and the process's control group allow."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")]
    for limit in limits:
        try:
            return min(physical, int(limit.read_text()))
        except (OSError, ValueError):  # no such file, or `max`
            continue
    return physical


def processor_name(device: torch.device) -> str:
    """Return the name of the device as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
