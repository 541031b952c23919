"""The choice that a model makes among several continuations, by log-probability, raw and normalised by length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptcli.evaluate.bootstrap import Floats

# Name of an accuracy -> what a choice's log-probability is divided by.
NORMALISATIONS = {
    "accuracy": "nothing (lm-eval's acc)",
    "accuracy_per_character": "characters (lm-eval's acc_norm)",
    "accuracy_per_byte": "UTF-8 bytes (lm-eval's acc_bytes)",
    "accuracy_per_token": "tokens",
}


def preferred(choices: Sequence[str], logprobs: Sequence[float], tokens: Sequence[int]) -> dict[str, int]:
    """Return the choice that each normalisation prefers, the first of equal ones; an empty choice counts as of length
    1."""
    lengths = {
        "accuracy": [1] * len(choices),
        "accuracy_per_character": [len(choice) for choice in choices],
        "accuracy_per_byte": [len(choice.encode()) for choice in choices],
        "accuracy_per_token": tokens,
    }
    values = np.asarray(logprobs, dtype=np.float64)
    return {name: int(np.argmax(values / np.maximum(1, divisors))) for name, divisors in lengths.items()}


def probabilities(logprobs: Sequence[float]) -> Floats:
    """Return the distribution over choices alone, (n,): softmax of their log-probabilities."""
    values = np.asarray(logprobs, dtype=np.float64)
    weights = np.exp(values - values.max())
    return weights / weights.sum()
