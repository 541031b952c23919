"""Wall clock from raw text to a loss: `gptcli pretrain` with nothing cached, and nanoGPT's recipe for a CPU.

TEXT is split by bytes into 90 % for training and 10 % for validation, nanoGPT's rule. A round is, each in a fresh
process:

    gptcli   `gptcli pretrain shakespeare.yaml` with an empty cache, timed from the start of the process to its end:
             import, training a tokenizer, encoding, training, validation, a sample and the checkpoint all count; then
             `gptcli evaluate RUN validation.txt`, not timed, for the bits per byte of every validation byte
    nanogpt  with --peer: `nanogpt.py train TEXT`, timed likewise; its loss at the end is measured as nanoGPT does it
             (20 random batches) and, not timed, over every validation byte as gptcli's is

A round's number is the seed of both sides. Bits per byte leave the tokenizer free: the peer's are nats per character
/ ln 2, its text being ASCII. Exit code 1 where the median of gptcli misses the target. On a busy machine wall clocks
say little: with --threads 1 the seconds of CPU, printed beside them, are the steadier measure.

With --budget the other question is asked: the bits per byte after a given time, all choices left to gptcli
(open.yaml), against the peer's end.

Run:
    python tests/bench/time_to_loss.py TEXT [--target 2.72] [--rounds 3] [--peer] [--json]
    python tests/bench/time_to_loss.py TEXT --budget 5m --target 2.27 --rounds 1
    python tests/bench/time_to_loss.py TEXT --rounds 1 -s train.steps=200   # a trial; overrides as of gptcli pretrain

Learnt:
  - nanoGPT's own figure, of 20 random batches, is noisy: at step 250 it says 2.445 nats where all bytes give 2.465, at
    its end 1.873 where all bytes give 1.863.
  - Beside another process a single thread is the steadier measure (--threads 1): two wait for each other.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import harness


def ours(run_file: Path, text: Path, seed: int, overrides: list[str], budget: str | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        harness.split(text, directory)
        (directory / "cache").mkdir()
        where = {"cwd": directory, "XDG_CACHE_HOME": name + "/cache"}
        settings = [f"-s{override}" for override in (f"runtime.seed={seed}", "run_dir=run", *overrides)]
        settings += ["--budget", budget] if budget else []
        done = harness.run(harness.gptcli("pretrain", run_file.resolve(), *settings), **where)
        for line in done.stderr.splitlines():
            if budget and line.startswith(("budget", "model", "vocabulary", "batch", "steps", "the text")):
                harness.note(line)
        scored = harness.run(harness.gptcli("evaluate", "run", "validation.txt", "--json"), **where)
        evaluation = json.loads(scored.stdout)
        if evaluation["bytes"] != (directory / "validation.txt").stat().st_size:
            raise SystemExit(f"gptcli evaluate scored {evaluation['bytes']} bytes, which are not all")
        return {
            "seconds": done.seconds,
            "cpu_seconds": done.cpu_seconds,
            "step_seconds": training_seconds(directory / "run" / "metrics.jsonl"),
            "bits_per_byte": evaluation["bits_per_byte"],
            "peak_memory_bytes": done.peak_bytes,
        }


def training_seconds(metrics: Path) -> float:
    """Time within optimizer steps."""
    total, before = 0.0, 0
    for line in metrics.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            total += record["step_seconds"] * (record["step"] - before)
            before = record["step"]
    return total


def peer(text: Path, seed: int, threads: int | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        command = harness.program("nanogpt.py", "train", text.resolve(), "--out", name, "--seed", str(seed))
        done = harness.run(command, **({"OMP_NUM_THREADS": str(threads)} if threads else {}))
        checkpoint = Path(name) / "ckpt.pt"
        scored = harness.run(harness.program("nanogpt.py", "evaluate", checkpoint, text.resolve()))
        nats = json.loads(done.stdout)["validation_nats"]
        return {
            "seconds": done.seconds,
            "cpu_seconds": done.cpu_seconds,
            "validation_nats": nats,
            "bits_per_byte_of_its_own_measure": nats / math.log(2),
            "bits_per_byte": json.loads(scored.stdout)["bits_per_character"],
            "peak_memory_bytes": done.peak_bytes,
        }


def show(name: str, found: dict[str, dict[str, float]]) -> None:
    print(name)
    for key, values in found.items():
        scale = 1e-9 if key.endswith("bytes") else 1.0
        unit = ", GB" if key.endswith("bytes") else ""
        print(f"  {(key.replace('_', ' ').removesuffix(' bytes') + unit):34}{harness.show(values, '.4g', scale)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--target", type=float, default=2.72, help="bits per byte to reach; nanoGPT's 1.88 nats")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="run nanoGPT's recipe, too: two to three minutes a round")
    parser.add_argument("--budget", help="give gptcli so much time (5m) and leave the choices to it")
    parser.add_argument("--run-file", type=Path, help="default: shakespeare.yaml, with --budget open.yaml")
    parser.add_argument("-s", "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, help="of both sides; default: each side's own choice")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.run_file = given.run_file or harness.BENCH / ("open.yaml" if given.budget else "shakespeare.yaml")
    if given.threads:
        given.overrides.append(f"runtime.threads={given.threads}")
    if given.peer and not given.text.read_bytes().isascii():
        parser.error("--peer counts a character as a byte: TEXT must be ASCII")
    harness.warn_of_load()
    rounds: dict[str, list[dict[str, float]]] = {"gptcli": [], "nanogpt": []}
    for seed in range(1, given.rounds + 1):
        rounds["gptcli"].append(ours(given.run_file, given.text, seed, given.overrides, given.budget))
        if given.peer:
            rounds["nanogpt"].append(peer(given.text, seed, given.threads))
        for side, found in rounds.items():
            if found:
                harness.note(
                    f"round {seed}: {side} {found[-1]['seconds']:.1f} s, {found[-1]['bits_per_byte']:.4f} bits"
                )
    sides = {
        side: {key: harness.spread(one[key] for one in found) for key in found[0]}
        for side, found in rounds.items()
        if found
    }
    reached = sides["gptcli"]["bits_per_byte"]["median"] <= given.target
    result = {"target_bits_per_byte": given.target, "reached": reached, "rounds": given.rounds, "sides": sides}
    if given.peer:
        pairs = zip(rounds["nanogpt"], rounds["gptcli"], strict=True)
        result["times_faster"] = harness.spread(theirs["seconds"] / mine["seconds"] for theirs, mine in pairs)
        pairs = zip(rounds["nanogpt"], rounds["gptcli"], strict=True)
        result["times_less_cpu"] = harness.spread(theirs["cpu_seconds"] / mine["cpu_seconds"] for theirs, mine in pairs)
    if given.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        for side, found in sides.items():
            show(side, found)
        print(f"gptcli {'reaches' if reached else 'MISSES'} the target of {given.target:g} bits per byte")
        if given.peer:
            print(f"wall clock, nanogpt / gptcli: {harness.show(result['times_faster'], '.1f')}")
            print(f"CPU time, nanogpt / gptcli: {harness.show(result['times_less_cpu'], '.1f')}")
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
