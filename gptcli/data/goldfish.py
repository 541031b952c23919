"""The goldfish loss (Hans et al. 2024): a hash of the tokens before a target decides whether it is learnt.

A passage that comes again, at whatever place of a row, lacks the same targets each time, so that the model has to guess
there and leaves the passage. The hash reads across the start of a row: the first targets of a row would otherwise have
no context, always be learnt, and betray a passage over which the rows of several epochs walk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.config.loss import GoldfishConfig

_FACTOR = 0x5851F42D4C957F2D
_MIX = 0x3F58476D1CE4E5B9
_BITS = 31


def dropped(ids: Tensor, goldfish: GoldfishConfig) -> Tensor:
    """Return which of the ids (R, context + T), from the `context`-th on, are not learnt: (R, T) bool.

    A polynomial of the ids before each, modulo 2^64, of which the upper bits count.
    """
    width = ids.shape[1] - goldfish.context
    hashed = torch.zeros_like(ids[:, :width])
    for place in range(goldfish.context):
        hashed.mul_(_FACTOR).add_(ids[:, place : place + width] + 1)
    hashed = (hashed ^ (hashed >> 29)) * _MIX
    return ((hashed >> (63 - _BITS)) & ((1 << _BITS) - 1)) % goldfish.drop_every == 0
