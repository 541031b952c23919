"""What the benchmark programs share: a fresh process with its wall clock and peak memory, and medians with spread.

Standard library only, so that the process that measures stays small and light.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).resolve().parent

# The comparisons are made on the CPU, and nothing may be looked up on a network. gptcli takes its threads from its run
# file and the peers take theirs from OMP_NUM_THREADS, so that one that is set already would hold for the peers only.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
# Without compiled modules on disk, gptcli compiles its source at every start: 25 ms of `--help`, and no user's case.
OURS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    seconds: float  # wall clock, from its start to its end
    cpu_seconds: float  # of its threads together
    peak_bytes: int  # resident memory
    stdout: str
    stderr: str


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    code: int = 0,
    stdin: Path | None = None,
    **environment: str,
) -> Finished:
    """Run a command to its end; SystemExit with what it said where its exit code is not `code`."""
    kept = {name: text for name, text in os.environ.items() if name not in OURS}
    env = {**kept, **ENVIRONMENT, **environment}
    arguments = [os.fspath(part) for part in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(stdin or os.devnull, "rb") as given:
        started = time.perf_counter()
        process = subprocess.Popen(arguments, cwd=cwd, env=env, stdin=given, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if process.returncode != code:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}, want {code}\n{texts[1][-2000:]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Finished(seconds, cpu_seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), *texts)


def gptcli(*arguments: str | Path) -> list[str | Path]:
    """The command line of the gptcli that is installed beside this Python."""
    script = Path(sys.executable).with_name("gptcli")
    return [*([script] if script.exists() else [sys.executable, "-m", "gptcli"]), *arguments]


def program(name: str, *arguments: str | Path) -> list[str | Path]:
    """The command line of a program of this directory."""
    return [sys.executable, BENCH / name, *arguments]


def split(text: Path, directory: Path) -> None:
    """Write train.txt and validation.txt; the cut is moved back to the start of a UTF-8 character."""
    data = text.read_bytes()
    cut = int(len(data) * 0.9)
    while cut and data[cut] & 0xC0 == 0x80:
        cut -= 1
    (directory / "train.txt").write_bytes(data[:cut])
    (directory / "validation.txt").write_bytes(data[cut:])


def words(count: int) -> str:
    """A text of so many made-up words, of 6,000 different ones, always the same."""
    draw, letters = random.Random(1), "abcdefghijklmnopqrstuvwxyz"
    known = ["".join(draw.choices(letters, k=draw.randrange(2, 9))) for _ in range(6000)]
    return " ".join(draw.choices(known, k=count))


def note(text: str) -> None:
    """Progress, for a person who waits."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(found: dict[str, float], form: str = ",.0f", scale: float = 1.0) -> str:
    """`MEDIAN (MIN..MAX)`."""
    median, low, high = (format(found[key] * scale, form) for key in ("median", "min", "max"))
    return f"{median} ({low}..{high})"


def warn_of_load() -> None:
    """Say so where other processes use this machine: figures that are measured now are of no use."""
    try:
        first, second = (_processor_ticks(wait) for wait in (0.0, 1.0))
    except (OSError, ValueError):
        return  # only Linux says it in /proc/stat
    total, idle = (after - before for after, before in zip(second, first, strict=True))
    if total and idle / total < 0.9:
        note(f"warning: other processes use {1 - idle / total:.0%} of the processors; measure on an idle machine")


def _processor_ticks(wait: float) -> tuple[int, int]:
    """After a while: ticks of all processors so far, and those of them that were idle."""
    time.sleep(wait)
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(part) for part in file.readline().split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]
