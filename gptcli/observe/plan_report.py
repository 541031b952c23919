"""The figures of a plan, and how they are said."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from gptcli.base.units import amount, duration
from gptcli.data.size import TokenCount
from gptcli.observe.memory import Memory
from gptcli.observe.plan_processes import SharedPlan

USABLE_MEMORY = 0.92  # of a device: the rest is its driver's, its allocator's and other processes'
UPDATE_BYTES = 28  # moved a weight by an update: weight, gradient and two averages read, three written
MANY_EPOCHS = 4  # repeating data up to here is nearly as good as new data (Muennighoff et al. 2023)
# Compute-optimal tokens a parameter: of all parameters (Hoffmann et al. 2022), and of the weights in matrix products
# for models of the modern recipe (the scaling law fitted with nanochat, January 2026).
CHINCHILLA_RATIO, MODERN_RATIO = 20.0, 10.5


LIMITS = {
    "memory": "memory: the run does not fit",
    "memory bandwidth": "memory bandwidth: an update moves more than the products take; raise train.batch_size",
    "data": f"data: more than {MANY_EPOCHS} epochs; give more text, or fewer steps",
    "compute": "compute",
}


@dataclass(frozen=True)
class Target:
    """The machine that a run would be trained on."""

    name: str
    flops_per_second: float
    memory_bytes: int | None
    read_bytes_per_second: float | None
    watts: float | None
    activation_size: int
    on_cpu: bool
    threads: int = 1


@dataclass(frozen=True)
class Rates:
    """The assumptions about the work and its price."""

    mfu: float = 0.4
    price_per_hour: float | None = None
    watts: float | None = None


@dataclass(frozen=True)
class TeacherPlan:
    """The cost of a run's teacher."""

    parameters: int
    flops: float  # of what it reads in the run
    kept_bytes: int | None  # on disk, of what it says of the text, which it then reads once; None: it reads along

    def line(self) -> str:
        """Format it for a person."""
        reads = (
            "reads along" if self.kept_bytes is None else f"reads the text once, keeps {amount(self.kept_bytes, 'B')}"
        )
        return f"{amount(self.parameters)} parameters; {reads}: {self.flops:.3g} FLOPs"


@dataclass(frozen=True)
class Plan:
    """The facts that `gptcli plan` prints."""

    target: Target
    rates: Rates
    parameters: dict[str, int]  # by part
    matrix_weights: int  # in matrix products, a tied head included
    steps: int
    tokens_per_step: int
    data: TokenCount | None
    weight_flops: float  # of the run: 6 a weight and token
    attention_flops: float  # of the run: 12 L H D T a token
    memory: Memory
    cache_bytes: int  # keys and values of one text of a whole context
    micro_batches: dict[int, int]  # sequences in a forward pass -> bytes, for every divisor of the batch
    measured_step_seconds: float | None
    shared: SharedPlan | None = None  # of several processes, each on a target of its own
    teacher: TeacherPlan | None = None

    @property
    def processes(self) -> int:
        return self.shared.processes if self.shared else 1

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def flops(self) -> float:
        return self.weight_flops + self.attention_flops

    @property
    def epochs(self) -> float | None:
        return self.tokens / self.data.tokens if self.data and self.data.tokens else None

    @property
    def mfu(self) -> float:
        """Return the MFU of the measured steps, else the assumed one."""
        if self.measured_step_seconds is None:
            return self.rates.mfu
        return self.flops / self.steps / self.measured_step_seconds / self.target.flops_per_second

    @property
    def seconds(self) -> float:
        flops = self.flops + (self.teacher.flops if self.teacher else 0)
        computing = flops / (self.target.flops_per_second * self.mfu)
        if self.shared is None:
            return computing
        return computing / (self.processes * self.shared.busy) + self.steps * self.shared.exchange_seconds

    @property
    def kilowatt_hours(self) -> float | None:
        watts = self.rates.watts or self.target.watts
        return None if watts is None else self.processes * watts * self.seconds / 3.6e6

    @property
    def price(self) -> float | None:
        return (
            None
            if self.rates.price_per_hour is None
            else self.processes * self.rates.price_per_hour * self.seconds / 3600
        )

    @property
    def usable_bytes(self) -> float:
        return math.inf if self.target.memory_bytes is None else USABLE_MEMORY * self.target.memory_bytes

    @property
    def fits(self) -> bool:
        return self.memory.total_bytes <= self.usable_bytes

    @property
    def fitting_micro_batches(self) -> list[int]:
        return [size for size, needed in self.micro_batches.items() if needed <= self.usable_bytes]

    def limit(self) -> str:
        """Return what the run meets first."""
        if not self.fits:
            return "memory"
        bandwidth = self.target.read_bytes_per_second
        if bandwidth and UPDATE_BYTES * self.total_parameters / bandwidth > self.seconds / self.steps:
            return "memory bandwidth"
        if self.epochs is not None and self.epochs > MANY_EPOCHS:
            return "data"
        return "compute"

    def as_dict(self) -> dict[str, Any]:
        return {
            "parameters": {
                **self.parameters,
                "total": self.total_parameters,
                "in_matrix_products": self.matrix_weights,
            },
            "tokens": {
                "steps": self.steps,
                "per_step": self.tokens_per_step,
                "total": self.tokens,
                "per_parameter": self.tokens / self.total_parameters,
                "per_matrix_weight": self.tokens / self.matrix_weights,
                "data": self.data.tokens if self.data else None,
                "data_is_estimated": self.data.estimated if self.data else None,
                "epochs": self.epochs,
            },
            "flops": {"weights": self.weight_flops, "attention": self.attention_flops, "total": self.flops},
            "teacher": dataclasses.asdict(self.teacher) if self.teacher else None,
            "memory_bytes": {**self.memory.parts, "total": self.memory.total_bytes},
            "memory_moment": self.memory.moment,
            "cache_bytes_per_text": self.cache_bytes,
            "target": dataclasses.asdict(self.target),
            "mfu": self.mfu,
            "measured_step_seconds": self.measured_step_seconds,
            "shared": self.shared.as_dict() if self.shared else None,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "kilowatt_hours": self.kilowatt_hours,
            "price": self.price,
            "compute_optimal": self.compute_optimal(),
            "fits": self.fits,
            "fitting_micro_batch_sizes": self.fitting_micro_batches,
            "limit": self.limit(),
        }

    def compute_optimal(self) -> dict[str, dict[str, float]]:
        """Return the parameters and tokens that make the best of the run's FLOPs, C = 6 N D with D = ratio x N, by two
        fits."""
        return {
            name: {
                "ratio": ratio,
                "parameters": math.sqrt(self.flops / (6 * ratio)),
                "tokens": math.sqrt(self.flops * ratio / 6),
            }
            for name, ratio in (("chinchilla", CHINCHILLA_RATIO), ("modern", MODERN_RATIO))
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        return [*self._size_lines(), *self._memory_lines(), *self._time_lines(), *self._advice_lines()]

    def _size_lines(self) -> list[tuple[str, str]]:
        parts = ", ".join(f"{name} {amount(count)}" for name, count in self.parameters.items() if count)
        lines = [
            ("parameters", f"{self.total_parameters:,} ({parts})"),
            ("tokens", f"{self.tokens:,}: {self.steps:,} steps of {self.tokens_per_step:,}"),
        ]
        if self.data is not None and self.epochs is not None:
            about = "about " if self.data.estimated else ""
            lines.append(("data", f"{about}{amount(self.data.tokens)} training tokens: {self.epochs:.3g} epochs"))
        else:
            lines.append(("data", "not there yet"))
        products = f"6 x {amount(self.matrix_weights)} weights x {amount(self.tokens)} tokens = {self.weight_flops:.3g}"
        lines.append(("FLOPs", f"{self.flops:.3g}: {products}, attention {self.attention_flops:.3g}"))
        return [*lines, ("teacher", self.teacher.line())] if self.teacher else lines

    def _memory_lines(self) -> list[tuple[str, str]]:
        lines = [("memory", f"{amount(self.memory.total_bytes, 'B')}, most in the {self.memory.moment}")]
        lines += [(f"  {part}", amount(size, "B")) for part, size in self.memory.parts.items() if size]
        lines += self.shared.lines() if self.shared else []
        lines.append(("memory of writing", f"{amount(self.cache_bytes, 'B')} of keys and values a text of full length"))
        if self.target.memory_bytes is None:
            return lines
        room = f"of {amount(self.target.memory_bytes, 'B')}"
        if self.fits:
            lines.append(("fits", f"yes, {self.memory.total_bytes / self.target.memory_bytes:.0%} {room}"))
        elif self.fitting_micro_batches:
            sizes = ", ".join(map(str, self.fitting_micro_batches))
            lines.append(("fits", f"no, {room}; train.micro_batch_size that does: {sizes}"))
        else:
            lines.append(("fits", f"no, {room}; nor with train.micro_batch_size=1: take a smaller model"))
        return lines

    def _time_lines(self) -> list[tuple[str, str]]:
        how = "measured" if self.measured_step_seconds is not None else "assumed"
        rate = amount(self.target.flops_per_second, "FLOP/s")
        lines = [
            ("on", f"{self.target.name}: {rate}, of which {self.mfu:.0%} used ({how})"),
            ("time", f"{duration(self.seconds)}, {amount(self.tokens / self.seconds)} tokens/s"),
        ]
        if self.kilowatt_hours is not None:
            lines.append(("energy", f"{amount(1000 * self.kilowatt_hours, 'Wh')}"))
        if self.price is not None:
            lines.append(("price", f"{self.price:,.2f}"))
        return lines

    def _advice_lines(self) -> list[tuple[str, str]]:
        best = self.compute_optimal()

        def advice(name: str, have: float) -> str:
            found = best[name]
            size, tokens = amount(found["parameters"]), amount(found["tokens"])
            return f"{have:.3g}, the best is {found['ratio']:g}: for these FLOPs {size} parameters, {tokens} tokens"

        return [
            ("limit", LIMITS[self.limit()]),
            ("tokens per parameter", advice("chinchilla", self.tokens / self.total_parameters)),
            ("  the modern recipe", advice("modern", self.tokens / self.matrix_weights)),
        ]
