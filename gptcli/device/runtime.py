"""The machine a run works on: device, dtype and threads, chosen once and passed on."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gptcli.base.errors import ConfigError
from gptcli.config.train import RuntimeConfig
from gptcli.device import accelerators
from gptcli.device.cpus import default_threads
from gptcli.device.machine import matmul_peak
from gptcli.device.private_torch import cpu_multiplies_bfloat16
from gptcli.device.process import is_own_process, modules_are_loaded


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    dtype: torch.dtype  # of activations and of matrix products
    threads: int
    short_cache: bool = False  # keys and values are kept in float16 for writing, whatever the activations

    @property
    def cache_dtype(self) -> torch.dtype:
        return torch.float16 if self.short_cache else self.dtype

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"


def make_runtime(config: RuntimeConfig, *, inference: bool = False, local_rank: int | None = None) -> Runtime:
    """Check the device and dtype asked for, and set the number of threads. ConfigError says what is there.

    Without a number of threads a caller's process keeps its own, and gptcli's has as many as it may use CPUs.
    dtype auto: bfloat16 where the device multiplies it faster than float32; for inference on a CPU float32, in which
    a text does not depend on what else is in its batch. Of several processes each has the GPU of its `local_rank`.
    """
    modules_are_loaded()
    device = _device(config.device)
    if local_rank is not None and device.type == "cuda" and device.index is None:
        device = _device(f"cuda:{local_rank}")
        torch.cuda.set_device(device)
    threads = config.threads or (default_threads() if is_own_process() else torch.get_num_threads())
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if config.dtype == "auto":
        dtype = torch.bfloat16 if _multiplies_bfloat16(device, inference=inference) else torch.float32
    else:
        dtype = getattr(torch, config.dtype)
    return Runtime(device=device, dtype=dtype, threads=threads)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"runtime.device: no device {name!r}; use auto, cpu, cuda or mps") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type):
        usable = ", ".join(kind for kind, usable in there.items() if usable)
        raise ConfigError(f"runtime.device: {name} is not available here; available: {usable}")
    return device


def _multiplies_bfloat16(device: torch.device, *, inference: bool) -> bool:
    """Return whether a device multiplies bfloat16 faster than float32, and whether that is wanted on it."""
    match device.type:
        case "cuda":
            return bool(torch.cuda.is_bf16_supported())
        case "cpu":
            return cpu_multiplies_bfloat16() and not inference
    return False  # MPS: not on every chip and macOS, and no faster


def matmul_flops_per_second(runtime: Runtime) -> float | None:
    """Return the device's peak in the run's dtype, else None: the data sheet's in bfloat16 on known accelerators, of a
    CPU what 50 ms of measuring find."""
    if runtime.device.type == "cuda":
        known = accelerators.find(torch.cuda.get_device_name(runtime.device))
        return known.flops_per_second if known and runtime.dtype == torch.bfloat16 else None
    if runtime.device.type != "cpu":
        return None
    return matmul_peak(runtime.device, runtime.dtype, seconds=0.025)


def keep_freed_memory() -> None:
    """Let glibc return what is free now, and keep blocks that are freed from now on instead of returning them to the
    kernel and faulting them in again.

    Activations of a training step are freed and allocated anew every step. What was freed before is in pieces: kept,
    it would add to the peak of the training after it.
    New threads use what heaps there are: one of their own cannot hold a block of 64 MB, which would be faulted in anew.
    In a caller's process nothing is changed.
    """
    if sys.platform == "linux" and is_own_process():
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            m_mmap_max, m_trim_threshold, m_arena_max = -4, -1, -8
            libc.malloc_trim(0)
            libc.mallopt(m_arena_max, 1)
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Let glibc return every block of a megabyte or more when it is freed, whatever has been freed before.

    Blocks of a sharded model come and go among gradients that stay: in one heap, holes between them took as much as
    the model. In a caller's process nothing is changed.
    """
    if sys.platform == "linux" and is_own_process():
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            m_mmap_threshold = -3
            libc.mallopt(m_mmap_threshold, 1 << 20)


def memory_bytes(runtime: Runtime) -> int:
    """Return the peak memory of this process: on the device, or resident on a CPU."""
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    try:
        # Not getrusage: on Linux its peak begins with that of the process that started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
