"""Measure this machine, and how fast a run file's model trains and writes on it."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gptcli.api.bench_generate import GenerationSpeed, writing_speed
from gptcli.base.report import Report
from gptcli.base.units import amount, count, duration
from gptcli.config.train import PretrainConfig, RuntimeConfig
from gptcli.data.size import find_vocabulary
from gptcli.data.tokenizer import learn_merges
from gptcli.device.machine import Machine, matmul_peak, measure
from gptcli.device.runtime import make_runtime, memory_bytes
from gptcli.observe.step_times import step_times
from gptcli.train.state import TrainState

STARTS = 3


@dataclass(frozen=True)
class MachineFacts:
    """The result of `gptcli bench machine`."""

    machine: Machine

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.machine), "torch": torch.__version__}

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        machine = self.machine
        return [
            ("device", f"{machine.device}: {machine.processor}"),
            ("threads", f"{machine.threads} on {count(machine.cores, 'core')}"),
            ("memory", amount(machine.memory_bytes, "B")),
            ("matrix products in float32", amount(machine.float32_flops_per_second, "FLOP/s")),
            ("matrix products in bfloat16", amount(machine.bfloat16_flops_per_second, "FLOP/s")),
            ("reading memory", amount(machine.read_bytes_per_second, "B/s")),
            ("torch", torch.__version__),
        ]


def machine_facts(*, device: str = "auto", threads: int | None = None) -> MachineFacts:
    """Measure the device, in about two seconds."""
    return MachineFacts(measure(make_runtime(RuntimeConfig(device=device, threads=threads)).device))


# ----------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class TrainingSpeed:
    """The speed of a run's optimizer steps on this machine, with made-up tokens."""

    parameters: int
    tokens_per_step: int
    flops_per_step: float
    step_seconds: Sequence[float]  # of each measured step
    peak_flops_per_second: float  # of matrix products in the run's dtype
    dtype: str
    memory_bytes: int

    def as_dict(self) -> dict[str, Any]:
        seconds = statistics.median(self.step_seconds)
        return {
            "parameters": self.parameters,
            "dtype": self.dtype,
            "tokens_per_step": self.tokens_per_step,
            "step_seconds": seconds,
            "step_seconds_min": min(self.step_seconds),
            "step_seconds_max": max(self.step_seconds),
            "steps": len(self.step_seconds),
            "tokens_per_second": self.tokens_per_step / seconds,
            "flops_per_second": self.flops_per_step / seconds,
            "peak_flops_per_second": self.peak_flops_per_second,
            "mfu": self.flops_per_step / seconds / self.peak_flops_per_second,
            "memory_bytes": self.memory_bytes,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        facts = self.as_dict()
        low, high = duration(facts["step_seconds_min"]), duration(facts["step_seconds_max"])
        return [
            ("training", f"{facts['tokens_per_second']:,.0f} tokens/s, {self.parameters:,} parameters in {self.dtype}"),
            ("a step", f"{duration(facts['step_seconds'])} ({low}..{high}) for {self.tokens_per_step:,} tokens"),
            ("FLOP/s", f"{amount(facts['flops_per_second'], 'FLOP/s')}, {facts['mfu']:.1%} of the peak (MFU)"),
            ("peak memory", amount(self.memory_bytes, "B")),
        ]


def bench_train(config: PretrainConfig) -> TrainingSpeed:
    """Time optimizer steps of the run's shapes on made-up tokens."""
    _, vocab_size = find_vocabulary(config)
    return training_speed(config, vocab_size)[0]


def training_speed(config: PretrainConfig, vocab_size: int) -> tuple[TrainingSpeed, TrainState]:
    """Time optimizer steps of the run's shapes on made-up tokens; return the speed and the state that they left."""
    runtime = make_runtime(config.runtime)
    state, times = step_times(config, dataclasses.replace(config.model, vocab_size=vocab_size), runtime)
    memory = memory_bytes(runtime)  # before the peak is measured, which takes memory too
    tokens = config.train.batch_size * config.model.context_length
    speed = TrainingSpeed(
        parameters=state.model.num_parameters(),
        tokens_per_step=tokens,
        flops_per_step=tokens * state.model.train_flops_per_token(config.model.context_length),
        step_seconds=times,
        peak_flops_per_second=matmul_peak(runtime.device, runtime.dtype),
        dtype=str(runtime.dtype).removeprefix("torch."),
        memory_bytes=memory,
    )
    return speed, state


# ----------------------------------------------------------------------------------------------------------- starting


def start_seconds() -> dict[str, float]:
    """Return the median wall clock of a process that does nothing, with and without torch."""
    commands = {"gptcli": ["-m", "gptcli", "--version"], "torch": ["-c", "import torch"]}
    return {
        name: statistics.median(_process_seconds(command) for _ in range(STARTS)) for name, command in commands.items()
    }


def _process_seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------------------- all


@dataclass(frozen=True)
class Everything:
    """The result of `gptcli bench RUN.yaml`."""

    training: TrainingSpeed
    writing: GenerationSpeed
    machine: MachineFacts
    start_seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "training": self.training.as_dict(),
            "writing": self.writing.as_dict(),
            "machine": self.machine.as_dict(),
            "start_seconds": self.start_seconds,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        starts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.start_seconds.items())
        written = self.writing.batch_lines()
        return [*self.training.lines(), *written, *self.machine.lines(), ("a process starts in", starts)]


def bench_all(config: PretrainConfig, *, report: Report) -> Everything:
    """Measure training first, so that its peak of memory is its own; then writing as `gptcli generate` does it."""
    tokenizer, vocab_size = find_vocabulary(config)
    report.message("measuring optimizer steps")
    training, state = training_speed(config, vocab_size)
    runtime = make_runtime(config.runtime, inference=True)
    model = state.model.eval().to(runtime.dtype)
    tokenizer = tokenizer or learn_merges(["time and again"], vocab_size=258)
    writing = writing_speed(model, tokenizer, runtime, name="new weights", batches=(1,), report=report)
    report.message("measuring the machine and starts")
    return Everything(training, writing, MachineFacts(measure(runtime.device)), start_seconds())
