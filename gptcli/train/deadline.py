"""The wall clock of a run with a budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from gptcli.config.train import TrainConfig
from gptcli.device.world import BY_GPTCLI
from gptcli.train.state import ScheduleRescale, TrainState

TOLERANCE = 0.01  # of the steps that are left: less is not worth a correction
SMOOTHING = 0.5  # weight of the newest measurement
EXIT_SECONDS = 0.3  # from the end of a run to the end of its process


def process_start() -> float:
    """Return when this process began, or the one of `--nproc` that started it, on time.monotonic()'s clock; on other
    systems than Linux, now."""
    try:
        with open(f"/proc/{os.environ.get(BY_GPTCLI, 'self')}/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])  # field 22, starttime since boot
        return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()


class Deadline:
    """A moment, if there is one, at which a run ends with its schedule complete, however fast the steps turn out to be.

    What is left of the schedule is stretched or shrunk by the speed of the last steps. Checkpoints hold it, and a
    resumed run keeps it as it stands.
    """

    def __init__(
        self, ends_at: float | None, train: TrainConfig, *, pause_seconds: float, most_steps: int | None = None
    ) -> None:
        """Expect each validation, with its sample and checkpoint, to take `pause_seconds`, until one was timed.
        `most_steps`: as many as there are data for, None for any number."""
        self.ends_at, self.train, self.most_steps = ends_at, train, most_steps
        self.pauses = {"all": pause_seconds}
        self.step_seconds: float | None = None

    def timed(self, name: str, hook: Callable[[TrainState], None]) -> Callable[[TrainState], None]:
        """Return the hook, its time noted for the pauses to come."""

        def wrapped(state: TrainState) -> None:
            started = time.monotonic()
            hook(state)
            self.pauses.pop("all", None)
            self.pauses[name] = time.monotonic() - started

        return wrapped

    def keep(self, state: TrainState, step_seconds: float) -> None:
        """Move the last step where the number of steps that fit has changed by more than the tolerance."""
        planned, every = self.train.steps, self.train.eval_every_steps
        last = state.last_step(planned)
        if self.ends_at is None or state.step >= last:
            return
        weight = SMOOTHING if self.step_seconds is not None else 1.0
        self.step_seconds = weight * step_seconds + (1 - weight) * (self.step_seconds or 0.0)
        pauses = (last - 1) // every - state.step // every + (state.step % every == 0) + 1
        left = self.ends_at - EXIT_SECONDS - time.monotonic() - pauses * sum(self.pauses.values())
        fitting = state.step + max(1, round(left / self.step_seconds))
        fitting = min(fitting, self.most_steps or fitting)
        if abs(fitting - last) > max(1, TOLERANCE * (last - state.step)):
            state.schedule_rescale = ScheduleRescale(planned, state.step, state.schedule_step(planned), fitting)
