"""The learning rate and Muon's momentum over a run."""

from __future__ import annotations

import math

from gptcli.config.train import OptimConfig

RAMP_SHARE, LONGEST_RAMP_STEPS = 0.2, 300  # of a run, over which Muon's momentum rises


def learning_rate_factor(step: float, steps: int, config: OptimConfig) -> float:
    """Return the rate of a step, from 0, relative to the peak: linear warm-up, plateau, decay over the last part."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    decay_steps = min(round(config.decay_fraction * steps), steps - config.warmup_steps)
    done = (step - (steps - decay_steps)) / decay_steps if decay_steps else 0.0  # share of the decay that is behind us
    if done <= 0 or config.schedule == "constant":
        return 1.0
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.final_learning_rate_fraction + (1 - config.final_learning_rate_fraction) * shape


def muon_momentum(step: float, steps: int, config: OptimConfig) -> float:
    """Return Muon's momentum in a step, from 0: lower at first, when the gradient's direction changes quickly."""
    ramp_steps = min(RAMP_SHARE * steps, LONGEST_RAMP_STEPS)
    return config.muon_momentum - config.muon_momentum_ramp * max(0.0, 1 - step / ramp_steps)
