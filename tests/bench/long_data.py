"""Batches from shards larger than memory: whether they slow down, and what they keep.

Shards of `--gib` GiB in all are made as sparse files, which cost no disk, with an index as `gptcli prepare` writes it;
beside them a small split of one shard. From each, batches are drawn as training draws them. Printed: tokens/s, and how
much memory of the process grew, its own (RssAnon) and mapped files (RssFile), which the kernel takes back when it needs
it. Linux only: it reads /proc.

Run:
    python tests/bench/long_data.py [--gib 64] [--batches 2000] [--json]

Learnt:
  - Through a mapping without MADV_RANDOM, 64 GiB gave 14 thousand tokens/s and mapped 50 KB for a row of 512 bytes;
    with it 630 thousand, beside 1.6 million from a split that is in memory. Training on a CPU takes ten thousand.
  - Holes of a sparse file come from the page cache's zeroes, so that this is the cost of the code. A disk
    is asked for one row of T tokens at a time: 512 bytes to 4 KiB at a random place.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

SHARD_BYTES = 1 << 30
CONTEXT, BATCH = 256, 16


def make(directory: Path, total_bytes: int) -> None:
    from gptcli.data.shards import SplitIndex, write_index

    directory.mkdir()
    train = SplitIndex(documents=1)
    for number in range(-(-total_bytes // SHARD_BYTES)):
        size = min(SHARD_BYTES, total_bytes - number * SHARD_BYTES)
        name = f"train-{number:05d}.bin"
        with (directory / name).open("wb") as file:
            file.truncate(size)
        train.shards.append({"file": name, "tokens": size // 2, "documents": 0, "sha256": ""})
        train.tokens += size // 2
    write_index(directory, vocab_size=4096, splits={"train": train, "validation": SplitIndex()})


def memory() -> dict[str, int]:
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


def measure(directory: Path, batches: int) -> dict[str, float]:
    """Speed of drawing batches, and what memory they took."""
    from gptcli.data.batches import TokenBatches
    from gptcli.data.shards import TokenArray

    tokens = TokenArray(directory, "train")
    draw = TokenBatches(tokens, context_length=CONTEXT, batch_size=BATCH, micro_batch_size=BATCH, first_token=0, seed=1)
    draw(0)
    before, started = memory(), time.perf_counter()
    for step in range(1, batches + 1):
        draw(step)
    seconds, after = time.perf_counter() - started, memory()
    return {
        "tokens": len(tokens),
        "tokens_per_second": batches * BATCH * CONTEXT / seconds,
        "own_bytes": after["RssAnon"] - before["RssAnon"],
        "mapped_bytes": after["RssFile"] - before["RssFile"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=64.0)
    parser.add_argument("--batches", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sizes = {"small": 2 << 20, "large": int(given.gib * (1 << 30))}
        for kind, total_bytes in sizes.items():
            make(Path(name) / kind, total_bytes)
        found = {kind: measure(Path(name) / kind, given.batches) for kind in sizes}
    found["ratio"] = found["large"]["tokens_per_second"] / found["small"]["tokens_per_second"]
    if given.json:
        json.dump(found, sys.stdout, indent=2)
        print()
        return
    for kind in sizes:
        facts = found[kind]
        print(
            f"{kind}: {facts['tokens']:,} tokens, {facts['tokens_per_second']:,.0f} tokens/s, "
            f"own memory +{facts['own_bytes'] / 1e6:.1f} MB, mapped +{facts['mapped_bytes'] / 1e6:.1f} MB"
        )
    print(f"large / small: speed {found['ratio']:.2f}")


if __name__ == "__main__":
    main()
