"""This machine -> what it can do; a run file -> how fast it trains and writes here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from gptcli.amounts import amount
from gptcli.config import RuntimeConfig
from gptcli.machine import Machine, measure
from gptcli.runtime import make_runtime


@dataclass(frozen=True)
class MachineFacts:
    """What `gptcli bench machine` prints."""

    machine: Machine

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.machine), "torch": torch.__version__}

    def lines(self) -> list[tuple[str, str]]:
        """For a person."""
        machine = self.machine
        return [
            ("device", f"{machine.device}: {machine.processor}, {machine.threads} threads on {machine.cores} cores"),
            ("memory", amount(machine.memory_bytes, "B")),
            ("matrix products in float32", amount(machine.float32_flops_per_second, "FLOP/s")),
            ("matrix products in bfloat16", amount(machine.bfloat16_flops_per_second, "FLOP/s")),
            ("reading memory", amount(machine.read_bytes_per_second, "B/s")),
            ("torch", torch.__version__),
        ]


def machine_facts(*, device: str = "auto", threads: int | None = None) -> MachineFacts:
    """Measure the device, in about two seconds."""
    return MachineFacts(measure(make_runtime(RuntimeConfig(device=device, threads=threads)).device))
