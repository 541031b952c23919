"""Memory by process of small real runs beside what `gptcli plan --processes` says, on this machine's CPUs.

A run of a few steps, with a validation and a checkpoint, in each number of processes; the peak is VmHWM of each
process, read until it ends. From both figures the same base is taken, the peak of a process that has imported what a
run imports and met the others (for the plan its own constant), so that what remains is the run's.

    small    6 layers, 384 wide, 14 M parameters
    medium   8 layers, 640 wide, 44 M parameters
    large    12 layers, 768 wide, 91 M parameters, GPT-2's blocks
    deep     32 layers, 512 wide, 105 M parameters, with activation checkpointing

Run:
    python tests/bench/plan_memory.py [--shape medium] [--processes 1 2 4] [--optim modern] [--shard] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

SHAPES = {
    "small": "{num_layers: 6, hidden_size: 384, num_heads: 6, context_length: 256}",
    "medium": "{num_layers: 8, hidden_size: 640, num_heads: 10, context_length: 256}",
    "large": "{num_layers: 12, hidden_size: 768, num_heads: 12, context_length: 256}",
    "deep": "{num_layers: 32, hidden_size: 512, num_heads: 8, context_length: 64}",
}
BASE = """
import sys
from pathlib import Path
import gptcli.api.pretrain, gptcli.observe.meter
from gptcli.config.parallel import ParallelConfig
from gptcli.config.train import RuntimeConfig
from gptcli.device.processes import joined
from gptcli.device.runtime import make_runtime, memory_bytes
runtime = make_runtime(RuntimeConfig(device="cpu", dtype="float32", threads=1))
with joined(ParallelConfig(), RuntimeConfig(device="cpu")) as processes:
    processes.largest(1)
    print(memory_bytes(runtime))
"""


def run_file(home: Path, shape: str, optim: str, exchange: str, *, sharded: bool) -> None:
    """Write a run file and its text."""
    (home / "corpus.txt").write_text(harness.words(100_000))
    (home / "run.yaml").write_text(
        "run_dir: run\n"
        "data: {train: [corpus.txt], cache_dir: cache}\n"
        "tokenizer: {vocab_size: 4096}\n"
        f"model: {SHAPES[shape]}\n"
        f"optim: {{preset: {optim}}}\n"
        "train: {steps: 3, batch_size: 8, micro_batch_size: 1, log_every_steps: 1, eval_every_steps: 3, "
        "eval_tokens: 4096, save_every_steps: 3, sample_every_steps: 0}\n"
        "runtime: {device: cpu, dtype: float32, threads: 1, compile: false, "
        f"activation_checkpointing: {str(shape == 'deep').lower()}}}\n"
        f"parallel: {{exchange: {exchange}, shard: {str(sharded).lower()}}}\n"
    )


def peaks(home: Path, processes: int) -> dict[int, int]:
    """Run; return the peak bytes of each process, by rank."""
    command = [sys.executable, "-m", "gptcli", "pretrain", "run.yaml", "-q", "-s", f"run_dir=run-{processes}"]
    command += ["--nproc", str(processes)] if processes > 1 else []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(command, cwd=home, env=environment)
    found: dict[int, int] = {}
    while process.poll() is None:
        workers = _children(process.pid) if processes > 1 else [process.pid]
        for pid in workers:
            peak, rank = _peak(pid), _rank(pid)
            if peak and rank is not None:
                found[rank] = max(found.get(rank, 0), peak)
        time.sleep(0.005)
    assert process.returncode == 0
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _peak(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _rank(pid: int) -> int | None:
    """Return the rank of a process, 0 of one that is alone; None of one that has not begun."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")), 0)


def base_bytes(home: Path, processes: int, *, sharded: bool) -> int:
    """Return the peak of a process that has imported all and met the others."""
    from ranks import free_port, place_of

    port, started = free_port(), []
    for rank in range(processes):
        place = place_of(rank, processes, port) if processes > 1 else {}
        more = "import torch.distributed.fsdp, torch.distributed.tensor\n" if sharded and processes > 1 else ""
        command = [sys.executable, "-c", more + BASE]
        started.append(subprocess.Popen(command, cwd=home, env=os.environ | place, stdout=subprocess.PIPE, text=True))
    return max(int(process.communicate()[0]) for process in started)


def planned(home: Path, processes: int) -> list[dict[str, int]]:
    """Return the plan's bytes by part, of the first process and of the others."""
    command = [sys.executable, "-m", "gptcli", "plan", "run.yaml", "--json"]
    command += ["--processes", str(processes)] if processes > 1 else []
    plan = json.loads(subprocess.run(command, cwd=home, check=True, capture_output=True).stdout)
    first: dict[str, int] = plan["memory_bytes"]
    return [first, plan["shared"]["other_memory_bytes"]] if processes > 1 else [first]


def measure(home: Path, processes: int, *, sharded: bool) -> list[dict[str, Any]]:
    """Return for each process what was measured and planned beside the base."""
    plans, base, rows = planned(home, processes), base_bytes(home, processes, sharded=sharded), []
    for rank, peak in sorted(peaks(home, processes).items()):
        plan = plans[min(rank, len(plans) - 1)]
        wanted, found = plan["total"] - plan["process"], peak - base
        rows.append({"processes": processes, "rank": rank, "measured_bytes": found, "planned_bytes": wanted,
                     "ratio": wanted / found, "base_bytes": base, "peak_bytes": peak, "plan": plan})  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--optim", choices=("modern", "classic"), default="modern")
    parser.add_argument("--exchange", choices=("micro_batch", "step"), default="micro_batch")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shard", action="store_true", help="each process has a part of the model")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    with tempfile.TemporaryDirectory() as name:
        run_file(Path(name), given.shape, given.optim, given.exchange, sharded=given.shard)
        rows = [row for processes in given.processes for row in measure(Path(name), processes, sharded=given.shard)]
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        measured, wanted, base = (row[name] / 1e6 for name in ("measured_bytes", "planned_bytes", "base_bytes"))
        print(
            f"{row['processes']} processes, rank {row['rank']}: measured {measured:,.0f} MB, planned {wanted:,.0f} MB "
            f"({row['ratio'] - 1:+.1%}), beside a base of {base:,.0f} MB"
        )


if __name__ == "__main__":
    main()
