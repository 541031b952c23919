"""The training loop: for each step its micro-batches forward and backward, the gradient's norm, clipping, the update.

Validating, saving and reporting are functions that the caller gives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptcli.base.errors import NumericalError
from gptcli.base.grouping import grouped
from gptcli.base.signals import Stopped
from gptcli.config.train import OptimConfig, TrainConfig
from gptcli.data.batches import Step, derived_seed
from gptcli.device.runtime import Runtime, memory_bytes
from gptcli.train.loss import next_token_nats
from gptcli.train.metrics import Record
from gptcli.train.state import TrainState
from gptcli.train.step import Objective
from gptcli.train.step_clock import StepClock, batch_flops


@dataclass(frozen=True)
class Hooks:
    """The functions that the loop calls: each gets the state after `state.step` steps."""

    evaluate: Callable[[TrainState], None]
    save: Callable[[TrainState], None]
    sample: Callable[[TrainState], None]
    report: Callable[[Record], None]
    keep_time: Callable[
        [TrainState, float], None
    ]  # gets the mean seconds of a step since the last log line; may rescale the schedule
    stop: Callable[[], bool]  # polled between micro-batches; evaluate and sample may raise Stopped, too


def train(
    state: TrainState,
    batches: Callable[[int], Step],
    config: TrainConfig,
    optim: OptimConfig,
    runtime: Runtime,
    hooks: Hooks,
    *,
    seed: int,
    peak_flops: float | None,
    objective: Objective,
) -> bool:
    """Run optimizer steps until config.steps, or the number that hooks.keep_time made of it; True if all were done,
    False if `hooks.stop` ended the run early.

    A run that is stopped while it validates or samples is saved with this pending, and begins with it when resumed.
    Raises NumericalError, before the update, where the loss or the gradient is not finite.
    """
    state.model.train()
    saved_step = state.step
    clock = StepClock(batch_flops(state.model))

    def take_step() -> None:
        factor = state.optimizers.set_schedule(state.schedule_step(config.steps), config.steps)
        step = clock.counting(batches(state.step))
        nats, grad_norm = train_step(
            state, step, optim.grad_clip_norm, runtime, seed=seed, objective=objective, stop=hooks.stop
        )
        state.step += 1
        state.tokens += clock.step_tokens  # all that were read; fine-tuning computes its loss on some of them
        state.post_step_pending = True
        if due(state.step, config.log_every_steps, state.last_step(config.steps)):
            facts = {"step": state.step, "tokens": state.tokens, "loss_nats": nats / max(1, step.targets)}
            facts |= {"grad_norm": grad_norm, "learning_rate": optim.learning_rate * factor}
            speed = clock.lap(peak_flops)
            hooks.report({"kind": "train", **facts, **speed, "memory_bytes": memory_bytes(runtime)})
            hooks.keep_time(state, speed["step_seconds"])

    while (state.post_step_pending or state.step < state.last_step(config.steps)) and not hooks.stop():
        try:
            if not state.post_step_pending:
                take_step()
            last_step = state.last_step(config.steps)
            with clock.paused():
                if due(state.step, config.eval_every_steps, last_step):
                    hooks.evaluate(state)
                if due(state.step, config.sample_every_steps, last_step):
                    hooks.sample(state)
        except Stopped:  # in the middle of a step, which is done again, or of what follows it, which stays pending
            break
        state.post_step_pending = False
        if due(state.step, config.save_every_steps, last_step):
            with clock.paused():
                hooks.save(state)
            saved_step = state.step
    if state.step != saved_step:
        hooks.save(state)
    return state.step >= state.last_step(config.steps) and not state.post_step_pending


def train_step(
    state: TrainState,
    step: Step,
    grad_clip_norm: float,
    runtime: Runtime,
    *,
    seed: int,
    objective: Objective = next_token_nats,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[float, float]:
    """Take one optimizer step -> (summed nats of the targets, L2 norm of the gradient before clipping).

    Without any target there is no update. Raises Stopped where `stop` said so between two micro-batches: then nothing
    has changed, and the step can be done again; NumericalError where the loss or the gradient is not finite.
    """
    if not step.targets:
        return 0.0, 0.0
    gradient = state.gradient_step
    losses: list[torch.Tensor] = []
    location = ""
    for micro_batches in grouped(step.micro_batches, gradient.concurrency(runtime)):
        location = location or micro_batches[0].place
        if losses and stop():
            gradient.zero_grad()
            raise Stopped
        if state.model.config.dropout:
            numbers = itertools.count(len(losses))
            seeds = (derived_seed(seed, "dropout", state.step, number) for number in numbers)
            micro_batches = [batch._replace(seed=s) for batch, s in zip(micro_batches, seeds, strict=False)]
        losses += gradient.forward_backward(objective, micro_batches, step.targets, runtime)
    norm = gradient.grad_norm()
    # Read together: on an accelerator each reading waits for the device. Summed in float64 on the CPU: MPS has none.
    *nats_of_each, grad_norm = torch.stack((*losses, norm.to(losses[0].dtype))).tolist()
    nats = torch.tensor(nats_of_each, dtype=torch.float64).sum().item()
    if not (math.isfinite(nats) and math.isfinite(grad_norm)):
        raise _not_finite(state, nats / step.targets, grad_norm, location)
    if grad_clip_norm and grad_norm > grad_clip_norm:
        gradient.clip(grad_clip_norm, norm)
    gradient.update()
    return nats, grad_norm


def _not_finite(state: TrainState, loss_nats: float, grad_norm: float, location: str) -> NumericalError:
    """Return the error of a step whose loss or gradient is not finite."""
    what = "gradient" if math.isfinite(loss_nats) else "loss"
    return NumericalError(
        f"step {state.step + 1}: the {what} is not finite (loss {loss_nats:g} nats, gradient norm "
        f"{grad_norm:g}) at learning rate {state.optimizers.learning_rate:g}; the batch begins at "
        f"{location}; lower optim.learning_rate or set optim.grad_clip_norm=1"
    )


def due(step: int, every: int, last: int) -> bool:
    """Return whether `step` is a multiple of `every` or the last step; never where `every` is 0."""
    return bool(every) and (step % every == 0 or step == last)
