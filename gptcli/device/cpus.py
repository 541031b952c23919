"""The number of CPUs that this process may use, by what limits it. Imports no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path("/")


def default_threads(environment: Mapping[str, str] = os.environ) -> int:
    """Return the threads of a command that names none: OMP_NUM_THREADS, otherwise the CPUs that may be used."""
    return _number(environment.get("OMP_NUM_THREADS", "").partition(",")[0]) or available_cpus(environment)


def available_cpus(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> int:
    """Return the CPUs of the process's affinity, or fewer where a control group's quota or Slurm's share is smaller.

    A quota of 1.5 CPUs counts as 2: two threads use all of it, one would not.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = _number(environment.get("SLURM_CPUS_PER_TASK", ""))
    return max(1, min(affinity, slurm or affinity, *(math.ceil(quota) for quota in _quotas(root))))


def _number(text: str) -> int:
    """Return the positive number that a text holds, 0 where it holds none."""
    return int(text) if text.strip().isascii() and text.strip().isdigit() else 0


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPUs that the control groups of this process and those around them allow, where they limit them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        inner = top / path.lstrip("/")
        for group in (inner, *inner.parents):
            if group.is_relative_to(top):
                yield from _quota(group)


def _quota(group: Path) -> Iterator[float]:
    """Yield the CPUs that one control group allows: of version 2 `cpu.max`, of version 1 two files."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((group / name).read_text() for name in names).split()
        except OSError:
            continue
        if len(words) == 2 and all(_number(word) for word in words):  # without a limit it is `max` or -1
            yield int(words[0]) / int(words[1])
