#!/usr/bin/env python3
"""Deduplicate a corpus in shards under Ray, or in plain processes, and check that one process gives the same bytes.

    pip install ray && python examples/corpus/shards.py raw/*.jsonl -o clean

Sign and apply take one shard each, so that an engine runs them anywhere; group is one process. On several machines the
directory has to be one that all of them see.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DEDUP = [sys.executable, "-m", "gptcli", "corpus", "dedup", "-q", "--force"]


def sign(shard: str, work: str, name: str) -> str:
    """Sketch one shard."""
    sketch = f"{work}/sketches/{name}"
    subprocess.run([*DEDUP, "--sign", shard, "-o", sketch], check=True)
    return sketch


def apply(shard: str, work: str, name: str) -> str:
    """Drop from one shard what its list names."""
    clean = f"{work}/{name}.jsonl"
    subprocess.run([*DEDUP, "--apply", f"{work}/drops/{name}.jsonl", shard, "-o", clean], check=True)
    return clean


def everywhere(engine: str, function, shards: list[str], work: str) -> list[str]:  # type: ignore[no-untyped-def]
    """Run a function of every shard, on Ray's workers or in two threads."""
    names = [f"part-{number:05d}" for number in range(len(shards))]
    if engine == "ray":
        import ray

        remote = ray.remote(function)
        return ray.get([remote.remote(shard, work, name) for shard, name in zip(shards, names, strict=True)])
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: function(pair[0], work, pair[1]), zip(shards, names, strict=True)))


def main() -> None:
    """Sign, group, apply; then the same in one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--engine", choices=["ray", "processes"], default="ray")
    given = parser.parse_args()
    shards, work = [str(Path(shard).resolve()) for shard in given.shards], str(given.output.resolve())
    if given.engine == "ray":
        try:
            import ray
        except ImportError:
            print("skipped: Ray is not installed; pip install ray, or --engine processes")
            return
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    given.output.mkdir(parents=True, exist_ok=True)
    sketches = everywhere(given.engine, sign, shards, work)
    subprocess.run([*DEDUP, "--group", *sketches, "-o", f"{work}/drops"], check=True)
    parts = everywhere(given.engine, apply, shards, work)
    together = b"".join(Path(part).read_bytes() for part in parts)
    alone = subprocess.run([*DEDUP, *shards], check=True, stdout=subprocess.PIPE).stdout
    same = "the same bytes as" if together == alone else "OTHER BYTES THAN"
    print(f"{len(shards)} shards under {given.engine}: {same} one process ({len(alone):,})")
    sys.exit(together != alone)


if __name__ == "__main__":
    main()
