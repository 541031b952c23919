"""Speed of two processes of one thread each against one process of two threads, on this machine's CPUs.

Each side is the real command on made-up text, in turn with the other, once a round. Its figure is the median tokens/s
of the lines of metrics.jsonl but the first; printed are the medians of the rounds (smallest..largest), and the ratio.
Memory is the peak of the first process, which saves.

    small   6 layers, 384 wide, 256 tokens of context, 16 sequences a step
    gpt2    GPT-2 124M, 1,024 tokens of context, 8 sequences a step

Run:
    python tests/bench/scale.py [--shape gpt2] [--rounds 3] [--steps 12] [--exchange step] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

SHAPES = {
    "small": ("{num_layers: 6, hidden_size: 384, num_heads: 6, context_length: 256}", 4096, 16),
    "gpt2": ("{preset: gpt2}", 4096, 8),
}
SIDES = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}


def run_file(home: Path, shape: str, steps: int, exchange: str) -> Path:
    """Write a run file and its text; return its path."""
    model, vocab_size, batch_size = SHAPES[shape]
    (home / "corpus.txt").write_text(harness.words(400_000))
    path = home / "run.yaml"
    path.write_text(
        "run_dir: run\n"
        "data: {train: [corpus.txt], cache_dir: cache}\n"
        f"tokenizer: {{vocab_size: {vocab_size}}}\n"
        f"model: {model}\n"
        f"train: {{steps: {steps}, batch_size: {batch_size}, log_every_steps: 1, eval_every_steps: {steps}, "
        f"eval_tokens: 1024, save_every_steps: {steps}, sample_every_steps: 0}}\n"
        "runtime: {device: cpu, compile: false}\n"
        f"parallel: {{exchange: {exchange}}}\n"
    )
    return path


def measure(home: Path, side: str, round_number: int) -> dict[str, float]:
    """Run one side; return its tokens/s and its peak of memory."""
    processes, threads = SIDES[side]
    run = home / f"run-{processes}-{round_number}"
    command = [sys.executable, "-m", "gptcli", "pretrain", "run.yaml", "-q", "-s", f"run_dir={run}"]
    command += ["-s", f"runtime.threads={threads}", *(["--nproc", str(processes)] if processes > 1 else [])]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(command, cwd=home, check=True, env=environment)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    return {
        "tokens_per_second": statistics.median(record["tokens_per_second"] for record in train[1:]),
        "memory_bytes": max(record["memory_bytes"] for record in train),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--exchange", choices=("micro_batch", "step"), default="micro_batch")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        run_file(home, given.shape, given.steps, given.exchange)
        for number in range(given.rounds):
            for side in SIDES:
                found[side].append(measure(home, side, number))
    speeds = {side: [each["tokens_per_second"] for each in rounds] for side, rounds in found.items()}
    one, two = (statistics.median(each) for each in speeds.values())
    report: dict[str, Any] = {"shape": given.shape, "exchange": given.exchange, "sides": found, "ratio": two / one}
    if given.json:
        print(json.dumps(report))
        return
    for side, each in speeds.items():
        memory = max(measured["memory_bytes"] for measured in found[side]) / 1e6
        print(f"{side}: {statistics.median(each):,.0f} tokens/s ({min(each):,.0f}..{max(each):,.0f}), {memory:,.0f} MB")
    print(f"ratio {two / one:.3f}")


if __name__ == "__main__":
    main()
