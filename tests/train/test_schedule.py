"""The learning-rate schedule, by hand and by its properties."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config.train import OptimConfig
from gptcli.train.schedule import learning_rate_factor

torch.set_num_threads(1)  # shapes so small that threads only wait for each other


def factors(steps: int, **changes: Any) -> list[float]:
    config = OptimConfig(**changes)
    return [learning_rate_factor(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"schedule": "linear", "decay_fraction": 0.5}, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"decay_fraction": 1.0, "final_learning_rate_fraction": 0.2}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        ({"schedule": "linear", "warmup_steps": 3, "decay_fraction": 0.25}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5]),
        ({"schedule": "linear", "warmup_steps": 4, "decay_fraction": 1.0}, [0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25]),
        (
            {"schedule": "cosine", "decay_fraction": 0.5, "final_learning_rate_fraction": 0.1},
            [1, 1, 1, 1, 1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5))],
        ),
        ({"schedule": "constant", "warmup_steps": 1}, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear", "decay_fraction": 0.0}, [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)  # fmt: skip
def test_factors_equal_those_computed_by_hand(changes: dict[str, Any], wanted: list[float]) -> None:
    assert factors(8, **changes) == pytest.approx(wanted)


@settings(deadline=None, max_examples=300)
@given(
    steps=st.integers(1, 200),
    warmup=st.floats(0, 1, exclude_max=True),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
    decay=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_the_factor_rises_stays_and_falls_within_zero_and_one(
    steps: int, warmup: float, schedule: str, decay: float, final: float
) -> None:
    warmup_steps = int(warmup * steps)
    found = factors(
        steps,
        warmup_steps=warmup_steps,
        schedule=schedule,
        decay_fraction=decay,
        final_learning_rate_fraction=final,
    )
    assert all(0 < factor <= 1 + 1e-12 for factor in found)
    rise, rest = found[: warmup_steps + 1], found[warmup_steps:]
    assert all(a < b for a, b in itertools.pairwise(rise))
    assert rest[0] == 1
    assert all(a >= b for a, b in itertools.pairwise(rest))
    assert rest[-1] >= final - 1e-12
