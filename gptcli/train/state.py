"""The state of training: everything that changes from step to step."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

from torch import Tensor

from gptcli.device.processes import ALONE, Processes
from gptcli.model.gpt import GPT
from gptcli.train.optimizers import Optimizers
from gptcli.train.sharded import Sharded
from gptcli.train.step import GradientStep
from gptcli.train.step_choice import make_gradient_step
from gptcli.train.weights import Weights, WholeWeights


@dataclass(frozen=True)
class ScheduleRescale:
    """A new scale for the rest of a schedule of `planned_steps`: after `step` steps `position` steps of it were
    done, and what was left of it ends with `last_step`."""

    planned_steps: int
    step: int
    position: float
    last_step: int


@dataclass
class TrainState:
    """All that changes while training; a checkpoint restores it bit for bit."""

    model: GPT
    optimizers: Optimizers
    step: int = 0
    tokens: int = 0
    best_score: float = math.inf  # of the validation that decides, lower is better: bits per byte, or 1 - F1
    best_step: int | None = None
    post_step_pending: bool = False  # what follows the step, validation and sample, is still to be done
    schedule_rescale: ScheduleRescale | None = None  # where a run for a given time was faster or slower than planned
    carried: dict[str, Tensor] = field(default_factory=dict)  # what a task's batches leave from step to step
    weights: Weights = field(default_factory=WholeWeights)
    processes: Processes = ALONE  # which take its steps together
    sharded: Sharded | None = None  # where they have a part of the model each

    @functools.cached_property
    def gradient_step(self) -> GradientStep:
        """Return what computes the gradient of a step, chosen at first use."""
        return make_gradient_step(self.model, self.optimizers, self.processes, self.sharded)

    def last_step(self, planned_steps: int) -> int:
        """Return the step that ends a run of so many steps."""
        stretch = self.schedule_rescale
        return stretch.last_step if stretch and stretch.planned_steps == planned_steps else planned_steps

    def schedule_step(self, planned_steps: int) -> float:
        """Return how many steps of the schedule are behind; `step` itself where it was not stretched."""
        stretch = self.schedule_rescale
        if stretch is None or stretch.planned_steps != planned_steps:
            return self.step
        share = (self.step - stretch.step) / (stretch.last_step - stretch.step)
        return stretch.position + (planned_steps - stretch.position) * share
