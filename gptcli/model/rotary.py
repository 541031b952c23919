"""Rotary position embedding (Su et al. 2021): tables of the angles, and what stretches them to longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gptcli.config.model import ModelConfig, RopeScaling

ROTARY_BLOCK = 1 << 14  # positions whose angles are computed at once


def rotary_tables(config: ModelConfig, *, local: bool = False) -> tuple[Tensor, Tensor]:
    """Return cos and signed sin (T, D) of every position, dimension i turned with i + D/2 (the layout of Llama).

    `local`: of the layers of sliding attention, which have a base of their own. Dimensions that are not rotated stand
    last in either half and have the angle 0, so that a rotation of a part costs what a whole one does.
    """
    T, D = config.context_length, config.head_size
    cos, sin = torch.empty(T, D), torch.empty(T, D)
    if cos.is_meta:  # without values; computing them there would import torch._dynamo, which takes a second
        return cos, sin
    frequencies, factor = rotary_frequencies(config, local=local)
    for start in range(0, T, ROTARY_BLOCK):  # so that only the tables themselves need memory
        block = slice(start, min(start + ROTARY_BLOCK, T))
        angles = torch.outer(torch.arange(block.start, block.stop, dtype=torch.float64), frequencies)  # (block, D/2)
        cos[block] = angles.cos().repeat(1, 2)
        sin[block] = torch.cat((-angles.sin(), angles.sin()), 1)
    if factor != 1.0:
        rotated = frequencies.ne(0).repeat(2)
        cos[:, rotated] *= factor
        sin[:, rotated] *= factor
    return cos, sin


def rotary_frequencies(config: ModelConfig, *, local: bool = False) -> tuple[Tensor, float]:
    """Return radians a position of every pair (D/2,), float64, and the factor of what is rotated."""
    R = config.rotary_dim or config.head_size
    theta = config.rope_theta
    scaling = config.rope_scaling
    if local and config.rope_local_theta is not None:
        theta, scaling = config.rope_local_theta, RopeScaling()
    frequencies = theta ** (-torch.arange(0, R, 2, dtype=torch.float64) / R)
    factor = 1.0
    match scaling.kind:
        case "linear":
            frequencies = frequencies / scaling.factor
        case "llama3":
            frequencies = _llama3(frequencies, scaling)
        case "yarn":
            frequencies = _yarn(frequencies, theta, scaling)
            stretched = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
            factor = stretched if scaling.attention_factor is None else scaling.attention_factor
    return torch.cat((frequencies, frequencies.new_zeros((config.head_size - R) // 2))), factor


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Scale frequencies as Llama 3.1: those that turn seldom in the original context are divided by the factor, with a
    ramp between."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    assert scaling.original_context is not None
    turns = scaling.original_context * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _yarn(frequencies: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Scale frequencies by YaRN (Peng et al. 2023), whose ramp is linear in the number of the pair."""
    assert scaling.original_context is not None
    pairs = len(frequencies)

    def pair(turns: float) -> float:
        """Return the number of the pair that turns so often in the original context."""
        assert scaling.original_context is not None
        return pairs * math.log(scaling.original_context / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair(scaling.fast_turns), pair(scaling.slow_turns)
    if scaling.whole_dimensions:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    ramp = (torch.arange(pairs, dtype=torch.float64) - first) / max(last - first, 1e-3)
    scaled = ramp.clamp(0, 1)
    return frequencies * (1 - scaled + scaled / scaling.factor)
