"""The one training loop.

A step takes its micro-batches, adds up their gradients divided by the real targets of the whole step, checks that
loss and gradient are finite, and updates. Evaluating, saving and reporting are functions given by the caller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.base.errors import NumericalError
from gptcli.base.signals import Stopped
from gptcli.config.train import OptimConfig, TrainConfig
from gptcli.data.batches import Batch, Step, derived_seed
from gptcli.device.runtime import Runtime, memory_bytes
from gptcli.model.attention import Packed
from gptcli.model.gpt import GPT
from gptcli.train.loss import head_cross_entropy
from gptcli.train.metrics import Record
from gptcli.train.optimizers import Optimizers, learning_rate_factor
from gptcli.train.state import TrainState
from gptcli.train.step import Objective

CPU_MICRO_TOKENS = 1024  # matrix products of so many rows are as fast as longer ones, and what they keep fits a cache


@dataclass(frozen=True)
class Hooks:
    """What the loop calls: each gets the state after `state.step` steps."""

    evaluate: Callable[[TrainState], None]
    save: Callable[[TrainState], None]
    sample: Callable[[TrainState], None]
    report: Callable[[Record], None]
    keep_time: Callable[[TrainState, float], None]  # gets the seconds of a step, and may stretch what is left
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

    A run that is stopped while it evaluates or samples is saved with this pending, and begins with it when resumed.
    NumericalError, before the update, where the loss or the gradient is not finite.
    """
    state.model.train()
    saved_step = state.step
    clock = _Clock(batch_flops(state.model))
    while (state.pending or state.step < state.last_step(config.steps)) and not hooks.stop():
        try:
            if not state.pending:
                factor = learning_rate_factor(state.position(config.steps), config.steps, optim)
                state.optimizers.set_factor(factor)
                before = clock.tokens
                targets, micro_batches = batches(state.step)
                nats, grad_norm = train_step(
                    state,
                    Step(targets, clock.counting(micro_batches)),
                    optim.grad_clip_norm,
                    runtime,
                    seed=seed,
                    objective=objective,
                    stop=hooks.stop,
                )
                state.step += 1
                state.tokens += clock.tokens - before  # read; fine-tuning learns some of them
                state.pending = True
                clock.steps += 1
                if due(state.step, config.log_every_steps, state.last_step(config.steps)):
                    speed = clock.lap(peak_flops)
                    hooks.report(
                        {
                            "kind": "train",
                            "step": state.step,
                            "tokens": state.tokens,
                            "loss_nats": nats / max(1, targets),
                            "grad_norm": grad_norm,
                            "learning_rate": optim.learning_rate * factor,
                            **speed,
                            "memory_bytes": memory_bytes(runtime),
                        }
                    )
                    hooks.keep_time(state, speed["step_seconds"])
            last_step = state.last_step(config.steps)
            with clock.paused():
                if due(state.step, config.eval_every_steps, last_step):
                    hooks.evaluate(state)
                if due(state.step, config.sample_every_steps, last_step):
                    hooks.sample(state)
        except Stopped:  # in the middle of a step, which is done again, or of what follows it, which stays pending
            break
        state.pending = False
        if due(state.step, config.save_every_steps, last_step):
            with clock.paused():
                hooks.save(state)
            saved_step = state.step
    if state.step != saved_step:
        hooks.save(state)
    return state.step >= state.last_step(config.steps) and not state.pending


class _Clock:
    """Time and tokens since the last metrics line."""

    def __init__(self, batch_flops: Callable[[Batch], float]) -> None:
        self.batch_flops = batch_flops
        self.started = time.perf_counter()
        self.steps = self.tokens = 0
        self.flops = 0.0

    def counting(self, micro_batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same, counted as they pass."""
        for batch in micro_batches:
            self.tokens += batch.inputs.numel()
            self.flops += self.batch_flops(batch)
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within the block does not count."""
        began = time.perf_counter()
        yield
        self.started += time.perf_counter() - began

    def lap(self, peak_flops: float | None) -> Record:
        """The speed since the last lap, and begin anew."""
        seconds = time.perf_counter() - self.started
        speed = {
            "step_seconds": seconds / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "mfu": self.flops / seconds / peak_flops if peak_flops else None,
        }
        self.started, self.steps, self.tokens, self.flops = time.perf_counter(), 0, 0, 0.0
        return speed


def batch_flops(model: GPT) -> Callable[[Batch], float]:
    """What counts the FLOPs of a batch, forward and backward, with attention over the length of each sequence."""
    weights = model.train_flops_per_token(0)
    attention = model.train_flops_per_token(1) - weights

    def flops(batch: Batch) -> float:
        rows, width = batch.inputs.shape
        return sum(length * (weights + length * attention) for length in batch.lengths or (width,) * rows)

    return flops


def next_token_nats(model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
    """Summed cross-entropy of the batch's targets, a float32 scalar."""
    layout = None if batch.lengths is None else Packed(batch.lengths, device=runtime.device)
    hidden = model.hidden(batch.inputs.to(runtime.device), dtype=runtime.dtype, layout=layout)
    targets = batch.targets.to(runtime.device)
    return head_cross_entropy(hidden, model.head.weight, targets, cap=model.config.logit_softcap)


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
    """One update; -> (summed nats of the targets, L2 norm of the gradient before clipping).

    Without any target there is no update. Stopped where `stop` said so between two micro-batches: then nothing has
    changed, and the step can be done again.
    """
    if not step.targets:
        return 0.0, 0.0
    place = ""

    def before(number: int, batch: Batch) -> None:
        nonlocal place
        place = place or batch.place
        if number and stop():
            state.passes.drop()
            raise Stopped

    def seed_of(number: int) -> int:
        return derived_seed(seed, "dropout", state.step, number)

    losses = state.passes.gradients(
        objective, step.micro_batches, step.targets, runtime, before=before, seed_of=seed_of
    )
    norm = state.passes.norm()
    # Read together: on an accelerator each reading waits for the device.
    nats, grad_norm = torch.stack((torch.stack(losses).double().sum(), norm.double())).tolist()
    if not (math.isfinite(nats) and math.isfinite(grad_norm)):
        what = "loss" if not math.isfinite(nats) else "gradient"
        raise NumericalError(
            f"step {state.step + 1}: the {what} is not finite (loss {nats / step.targets:g} nats, gradient norm "
            f"{grad_norm:g}) at learning rate {state.optimizers.learning_rate:g}; the batch begins at "
            f"{place}; lower optim.learning_rate or set optim.grad_clip_norm=1"
        )
    if grad_clip_norm and grad_norm > grad_clip_norm:
        state.passes.clip(grad_clip_norm, norm)
    state.passes.update()
    return nats, grad_norm


def make_optimizers(model: GPT, config: OptimConfig, *, step_tokens: int, dtype: torch.dtype) -> Optimizers:
    """Those of a model, for steps of so many tokens; `dtype` is that of its activations."""
    return Optimizers(
        model.named_parameters(),
        config,
        matrices=model.matrix_shapes(),
        step_flops=step_tokens * model.train_flops_per_token(model.config.context_length),
        dtype=dtype,
    )


def micro_batch_rows(config: TrainConfig, context_length: int, *, on_cpu: bool) -> int:
    """Sequences of one forward pass: as given, or the whole batch, or on a CPU as few as make CPU_MICRO_TOKENS."""
    if config.micro_batch_size or not on_cpu:
        return config.micro_batch
    divisors = (rows for rows in range(1, config.batch_size) if config.batch_size % rows == 0)
    return next((rows for rows in divisors if rows * context_length >= CPU_MICRO_TOKENS), config.batch_size)


def due(step: int, every: int, last: int) -> bool:
    """True after every `every` steps (0: never) and after the last."""
    return bool(every) and (step % every == 0 or step == last)
