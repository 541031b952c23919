"""A training step on an idle machine and beside busy cores, by how threads wait for each other.

    python tests/bench/busy.py                       # idle and beside one busy core, 1 and 2 threads, every policy
    python tests/bench/busy.py --rounds 9 --busy 2

Each round takes the variants one after another, so that what else the machine does falls on all of them; the table has
medians over the rounds, and the CPU seconds, which tell of spinning even where the wall clock is noisy.

Policies: `before` is what OpenMP does by itself (GNU's spins 300,000 turns), `gptcli` what the command sets
(device/process.py), `active` and `passive` are OMP_WAIT_POLICY's. Steps: `paired` has two micro-batches, each by one
thread; `single` has one, all of whose operations are shared by the threads, which is where they wait.

A fair share beside B busy loops on C cores is C / (threads + B) of a core for each thread; `to fair` is the time beside
them relative to the idle time by that share. To hold: `gptcli` below 1.5 there and within 2 % of `before` when idle.

Learnt, on two Zen 4 cores, `single` with two threads: 5,000 turns 1.7 of a fair share beside a busy core, 3,000 1.46,
2,000 1.39, 1,000 1.12, and idle 100, 105, 104 and 115 ms. A process that writes 400 tokens with 4 layers of 128: 1.78,
1.92, 1.91 and 2.04 s idle (300,000: 1.86), 3.6, 2.9, 2.7 and 2.5 s beside a busy core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

POLICIES = {
    "before": {},
    "gptcli": None,  # set by own_process()
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
NAMES = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SHAPES = {"paired": (2, 1024), "single": (1, 352)}  # micro-batches, tokens in each


def measure(own: bool, shape: str, threads: int, seconds: float) -> None:
    """Print the median wall and mean CPU milliseconds of steps as JSON: one process of the benchmark."""
    if own:
        from gptcli.device.process import own_process

        own_process()
    import torch

    from gptcli.config.model import ModelConfig
    from gptcli.config.train import OptimConfig
    from gptcli.data.batches import Batch, counted
    from gptcli.device.runtime import Runtime
    from gptcli.model.gpt import GPT
    from gptcli.train.loop import train_step
    from gptcli.train.optimizers import make_optimizers
    from gptcli.train.state import TrainState

    torch.set_num_threads(threads)
    runtime = Runtime(torch.device("cpu"), torch.float32, threads)
    model = GPT(ModelConfig(num_layers=4, hidden_size=256, num_heads=4, context_length=128, vocab_size=2048))
    model.initialize(torch.Generator().manual_seed(1))
    state = TrainState(model, make_optimizers(model, OptimConfig(), step_tokens=2048, dtype=torch.float32))
    parts, tokens = SHAPES[shape]
    ids = torch.randint(2048, (-(-tokens // 128), 128), generator=torch.Generator().manual_seed(1))
    step = counted([Batch(ids, ids, "made up")] * parts)
    train_step(state, step, 0.0, runtime, seed=1)
    times: list[float] = []
    cpu, end = time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        train_step(state, step, 0.0, runtime, seed=1)
        times.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / len(times)
    print(json.dumps({"wall": 1e3 * statistics.median(times), "cpu": 1e3 * cpu}))


def run(policy: str, shape: str, threads: int, seconds: float) -> dict[str, float]:
    """Measure one variant in a process of its own."""
    changes = POLICIES[policy]
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | (changes or {})
    own = "own" if changes is None else "as it is"
    command = [sys.executable, __file__, "--measure", own, shape, str(threads), str(seconds)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of steps in each measurement")
    parser.add_argument("--busy", type=int, default=1, help="busy loops beside the training")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        own, shape, threads, seconds = arguments.measure
        measure(own == "own", shape, int(threads), float(seconds))
        return
    cores = len(os.sched_getaffinity(0))
    found: dict[tuple[str, int, str, int], list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for busy in (0, arguments.busy):
            loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                for shape in SHAPES:
                    for threads in arguments.threads:
                        for policy in POLICIES:
                            result = run(policy, shape, threads, arguments.seconds)
                            found.setdefault((shape, threads, policy, busy), []).append(result)
            finally:
                for loop in loops:
                    loop.kill()
                    loop.wait()
    print(f"{cores} cores, {arguments.busy} of them busy, {arguments.rounds} rounds; load now {os.getloadavg()[0]:.1f}")
    print(f"{'step':8}{'threads':>8} {'policy':8}{'idle ms':>9}{'cpu':>8}{'busy ms':>9}{'cpu':>8}{'to fair':>9}")
    for shape in SHAPES:
        for threads in arguments.threads:
            share = min(1.0, cores / (threads + arguments.busy))
            for policy in POLICIES:
                idle, busy = (
                    {
                        kind: statistics.median(one[kind] for one in found[shape, threads, policy, loops])
                        for kind in ("wall", "cpu")
                    }
                    for loops in (0, arguments.busy)
                )
                fair = busy["wall"] * share / idle["wall"]
                print(
                    f"{shape:8}{threads:8} {policy:8}{idle['wall']:9.1f}{idle['cpu']:8.1f}{busy['wall']:9.1f}"
                    f"{busy['cpu']:8.1f}{fair:9.2f}"
                )


if __name__ == "__main__":
    main()
