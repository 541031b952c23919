"""Intervals of shares, by formula."""

from __future__ import annotations

import math

NORMAL_95 = 1.959963984540054


def wilson(successes: int, trials: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Return the interval of Wilson (1927) of a share, of 95 % unless `z` says otherwise; (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    share = successes / trials
    middle = share + z * z / (2 * trials)
    width = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)
