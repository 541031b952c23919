"""This process among all of a run, as torchrun, `--nproc` and Slurm tell it by the environment. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from gptcli.base.errors import ConfigError

BY_GPTCLI = "GPTCLI_LAUNCHED"  # set by device.launch, which says what became of a process that was killed
FIRST_PORT, PORTS = 20_000, 10_000  # below those that Linux gives to clients


_claimed = False


@dataclass(frozen=True)
class World:
    """The processes of a run, and where the first of them is met."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on its machine
    address: str = ""
    port: int = 0


def world(environment: Mapping[str, str] = os.environ) -> World:
    """Return this process's place; ConfigError where the environment contradicts itself.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Slurm sets SLURM_STEP_NUM_TASKS for what
    srun starts, and not for a batch script itself.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        found = World(
            _number(environment, "RANK"),
            _number(environment, "WORLD_SIZE"),
            _number(environment, "LOCAL_RANK", "0"),
            environment.get("MASTER_ADDR", "127.0.0.1"),
            _number(environment, "MASTER_PORT", "29500"),
        )
    elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        job, step = _number(environment, "SLURM_JOB_ID", "0"), _number(environment, "SLURM_STEP_ID", "0")
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "127.0.0.1")
        found = World(
            _number(environment, "SLURM_PROCID"),
            _number(environment, "SLURM_STEP_NUM_TASKS"),
            _number(environment, "SLURM_LOCALID", "0"),
            environment.get("MASTER_ADDR") or first_node(nodes),
            _number(environment, "MASTER_PORT", str(FIRST_PORT + (job + step) % PORTS)),
        )
    else:
        return World()
    if not 0 <= found.rank < found.count:
        raise ConfigError(f"RANK: {found.rank} is not below WORLD_SIZE {found.count}; start the processes by torchrun")
    return found if found.count > 1 else World()


def local_count(count: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return how many of `count` processes are on this machine; where nobody says so, all. Slurm lists those of every
    machine: 16(x2),8."""
    if "LOCAL_WORLD_SIZE" in environment:
        return _number(environment, "LOCAL_WORLD_SIZE")
    tasks = re.findall(r"(?:^|,)([0-9]+)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max(map(int, tasks), default=count)


def first_node(nodes: str) -> str:
    """Return the first host of a list as Slurm writes it: `gpu[003-010,12],login1` -> gpu003."""
    match = re.match(r"([^\[,]+)(?:\[([0-9]+)[^\]]*\]([^,]*))?", nodes)
    if not match:
        return nodes
    return match[1] + (match[2] or "") + (match[3] or "")


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}: {text!r} is no number; start the processes by torchrun, srun or --nproc")
    return int(text)


def speaks(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process tells of errors: the first on its machine until all have met, then whoever claimed
    to be the first that met one."""
    return _claimed or environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", "0")) == "0"


def claim_speech() -> None:
    """Have this process tell of its error: none did before."""
    global _claimed
    _claimed = True
