"""What a student learns from a teacher: bits per byte of the same student, plain and distilled, after equal steps.

TEXT is split by bytes into 90 % for training and 10 % for validation. The recipe is shakespeare.yaml. The teacher, 4
layers of 256, trains for `--teacher-steps`; each seed then trains the student, 4 layers of 128, twice for `--steps`: on
the text alone, and with `distill.teacher`. A figure is bits per byte over every validation byte. Exit code 1 where the
mean gain is below `--target`.

Run:
    python tests/bench/distill.py TEXT [--seeds 3] [--steps 200] [-s distill.alpha=0.5] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import harness

RECIPE = harness.BENCH / "shakespeare.yaml"
COMMON = ("runtime.dtype=float32",)
TEACHER = ("run_dir=teacher", "model.hidden_size=256")


def train(directory: Path, *overrides: str) -> tuple[float, float]:
    """Train a run -> its bits per byte and the seconds that it took."""
    settings = [f"-s{override}" for override in (*COMMON, *overrides)]
    run = next(override.removeprefix("run_dir=") for override in overrides if override.startswith("run_dir="))
    where = {"cwd": directory, "XDG_CACHE_HOME": str(directory / "cache")}
    done = harness.run(harness.gptcli("pretrain", RECIPE, "-q", *settings), **where)
    scored = harness.run(harness.gptcli("evaluate", run, "validation.txt", "--json", "--dtype", "float32"), **where)
    bits = float(json.loads(scored.stdout)["bits_per_byte"])
    harness.note(f"{run}: {bits:.4f} bits per byte, {done.seconds:.0f} s")
    return bits, done.seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--teacher-steps", type=int, default=400)
    parser.add_argument("--target", type=float, default=0.03)
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="of the distilled runs")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    harness.warn_of_load()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        harness.split(arguments.text, directory)
        teacher, _ = train(directory, *TEACHER, f"train.steps={arguments.teacher_steps}")
        plain, distilled = [], []
        for seed in range(1, arguments.seeds + 1):
            student = (f"runtime.seed={seed}", f"train.steps={arguments.steps}")
            plain.append(train(directory, f"run_dir=plain-{seed}", *student))
            taught = (f"run_dir=distilled-{seed}", "distill.teacher=teacher", *arguments.set)
            distilled.append(train(directory, *taught, *student))
    gains = [one - other for (one, _), (other, _) in zip(plain, distilled, strict=True)]
    found = {
        "teacher_bits_per_byte": teacher,
        "plain": {"bits_per_byte": [bits for bits, _ in plain], "seconds": [seconds for _, seconds in plain]},
        "distilled": {"bits_per_byte": [bits for bits, _ in distilled], "seconds": [took for _, took in distilled]},
        "gain": statistics.mean(gains),
    }
    if arguments.json:
        print(json.dumps(found))
    else:
        print(f"teacher    {teacher:.4f}")
        for kind, runs in (("plain", plain), ("distilled", distilled)):
            print(f"{kind:10} {harness.show(harness.spread(bits for bits, _ in runs), '.4f')}")
        print(f"gain       {found['gain']:.4f} (smallest {min(gains):.4f})")
    return int(found["gain"] < arguments.target)


if __name__ == "__main__":
    sys.exit(main())
