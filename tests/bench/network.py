"""A run over two network namespaces, as two machines have them, joined by a link with a bandwidth and a delay.

The link is a TUN device in each namespace and this program between them, which holds every packet for the time that
its bits take and the delay (a kernel's tc has the delay as netem, which is not built everywhere; the frames here are
large, so that a Python program keeps up). The same run is made by one process, by two over the link, and by two over
loopback: unless they are sharded, the weights must be the same bits. Bytes a step are the difference of two lengths of
run, as the link counted them, beside what `gptcli plan` says.

Needs Linux, root (or CAP_NET_ADMIN) and /dev/net/tun. Run:
    python tests/bench/network.py [--gbit 1] [--delay-ms 10] [--shard] [--exchange step]

Seen at 1 Gbit/s and 10 ms, two Zen 4 cores, a model of 4.2 M parameters: 25.20 MB a step from each side, where 25.17
were planned, 0.70 s a step (loopback 0.24, one process 0.36), the same bits; sharded 43.07 MB (42.99), 2.08 s (0.43).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 65_000
ADDRESSES = ("10.77.0.1", "10.77.0.2")
SHORT, LONG = 4, 12  # steps
Place = tuple[Sequence[str], str]  # what stands before a command, and its network device


class Link:
    """Two TUN devices, what enters one leaves the other, `delay` seconds after its last bit has passed."""

    def __init__(self, names: Sequence[str], *, bits_per_second: float, delay: float) -> None:
        self.files = [self._open(name) for name in names]
        self.rate, self.delay = bits_per_second, delay
        self.sent = [0, 0]  # bytes that entered each
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _open(self, name: str) -> int:
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        return file

    def _run(self) -> None:
        free = [0.0, 0.0]  # when the line has taken what came before
        waiting: list[deque[tuple[float, bytes]]] = [deque(), deque()]
        while not self.done.is_set():
            due = min((queue[0][0] for queue in waiting if queue), default=time.monotonic() + 0.1)
            ready, _, _ = select.select(self.files, [], [], max(0.0, due - time.monotonic()))
            for end in (0, 1):
                if self.files[end] in ready:
                    packet = os.read(self.files[end], MTU + 100)
                    self.sent[end] += len(packet)
                    free[end] = max(free[end], time.monotonic()) + 8 * len(packet) / self.rate
                    waiting[end].append((free[end] + self.delay, packet))
                while waiting[end] and waiting[end][0][0] <= time.monotonic():
                    os.write(self.files[1 - end], waiting[end].popleft()[1])


@contextmanager
def namespaces(*, bits_per_second: float, delay: float) -> Iterator[tuple[list[Place], Link]]:
    """Make two namespaces with a link between them -> the place of a process in each; they are gone afterwards."""
    spaces = [f"gptcli-{end}-{os.getpid()}" for end in "ab"]
    devices = [f"gptcli{end}{os.getpid() % 10_000}" for end in "ab"]
    link = Link(devices, bits_per_second=bits_per_second, delay=delay)
    try:
        for space, device, address in zip(spaces, devices, ADDRESSES, strict=True):
            for command in (
                f"ip netns add {space}",
                f"ip link set {device} netns {space}",
                f"ip -n {space} link set lo up",
                f"ip -n {space} address add {address}/24 dev {device}",
                f"ip -n {space} link set {device} mtu {MTU} up",
            ):
                subprocess.run(command.split(), check=True)
        link.thread.start()
        yield [(("ip", "netns", "exec", space), device) for space, device in zip(spaces, devices, strict=True)], link
    finally:
        link.done.set()
        if link.thread.is_alive():
            link.thread.join()
        for file in link.files:
            os.close(file)
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False)


def write_run_file(home: Path, *, shard: bool, exchange: str) -> None:
    (home / "corpus.txt").write_text(harness.words(100_000))
    (home / "run.yaml").write_text(
        "run_dir: run\n"
        "data: {train: [corpus.txt], cache_dir: cache}\n"
        "tokenizer: {vocab_size: 2048}\n"
        "model: {num_layers: 4, hidden_size: 256, num_heads: 4, context_length: 128}\n"
        f"train: {{steps: {LONG}, batch_size: 16, micro_batch_size: 4, log_every_steps: 1, eval_every_steps: 1000, "
        "save_every_steps: 1000, sample_every_steps: 0}\n"
        "runtime: {device: cpu, compile: false, threads: 1}\n"
        f"parallel: {{exchange: {exchange}, shard: {'true' if shard else 'null'}}}\n"
    )


def train(home: Path, name: str, steps: int, places: Sequence[Place]) -> dict[str, Any]:
    """Run to the end in a process at each place -> the time of a step and the hash of the weights."""
    command = harness.gptcli("pretrain", "run.yaml", "-q", "-s", f"run_dir={name}")
    command += ["-s", f"train.steps={steps}", "-s", f"train.save_every_steps={steps}"]
    command += ["-s", f"train.eval_every_steps={steps}"]
    processes = []
    for rank, (before, device) in enumerate(places):
        place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(places)), "MASTER_ADDR": ADDRESSES[0],
                 "MASTER_PORT": "29600", "GLOO_SOCKET_IFNAME": device}  # fmt: skip
        if device == "lo":
            place |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **(place if len(places) > 1 else {}), "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([*before, *command], cwd=home, env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{name}: exit codes {codes}")
    records = [json.loads(line) for line in (home / name / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["step_seconds"] for record in records if record["kind"] == "train"]
    harness.run(harness.gptcli("export", name, "-o", f"{name}-hf", "--to", "hf"), cwd=home)
    digest = hashlib.sha256((home / f"{name}-hf" / "model.safetensors").read_bytes()).hexdigest()
    return {"step_seconds": statistics.median(seconds[1:]), "sha256": digest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gbit", type=float, default=1.0)
    parser.add_argument("--delay-ms", type=float, default=10.0)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--exchange", choices=("micro_batch", "step"), default="micro_batch")
    given = parser.parse_args()
    harness.warn_of_load()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_run_file(home, shard=given.shard, exchange=given.exchange)
        planned = harness.run(
            harness.gptcli("plan", "run.yaml", "--processes", "2", "--bandwidth", f"{given.gbit}Gbit", "--json"),
            cwd=home,
        )
        plan = json.loads(planned.stdout)["shared"]
        one = train(home, "one", LONG, [((), "lo")])
        loopback = train(home, "loopback", LONG, [((), "lo"), ((), "lo")])
        with namespaces(bits_per_second=given.gbit * 1e9, delay=given.delay_ms / 1e3) as (places, link):
            sent = []
            for steps in (SHORT, LONG):
                before = list(link.sent)
                linked = train(home, f"linked-{steps}", steps, places)
                sent.append([now - then for now, then in zip(link.sent, before, strict=True)])
        each = [(long - short) / (LONG - SHORT) for short, long in zip(*sent, strict=True)]
    result = {
        "sent_bytes_per_step": each,
        "planned_bytes_per_step": plan,
        "step_seconds": {"one": one["step_seconds"], "loopback": loopback["step_seconds"],
                         "linked": linked["step_seconds"]},
        "same_bits": {"loopback": loopback["sha256"] == one["sha256"], "linked": linked["sha256"] == one["sha256"]},
    }  # fmt: skip
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
