"""Exact match and token F1 as SQuAD's own script defines them; which choice is preferred."""

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.evaluate.answers import exact_match, normalise, token_f1
from gptcli.evaluate.multiple_choice import preferred, probabilities

TEXTS = st.lists(
    st.sampled_from(["the", "A", "an", "cat", "Cat.", "sat", "U.S.", "naïve", "-", "  ", "\n"]), max_size=6
)


def squad_normalise(text: str) -> str:
    """The steps in the order of the published script, one at a time."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@given(TEXTS.map(" ".join), TEXTS.map(" ".join))
def test_token_f1_is_the_harmonic_mean_of_precision_and_recall(answer: str, reference: str) -> None:
    words, wanted = squad_normalise(answer).split(), squad_normalise(reference).split()
    shared = sum((collections.Counter(words) & collections.Counter(wanted)).values())
    if not words or not wanted:
        expected = float(words == wanted)
    elif not shared:
        expected = 0.0
    else:
        precision, recall = shared / len(words), shared / len(wanted)
        expected = 2 * precision * recall / (precision + recall)
    assert normalise(answer) == squad_normalise(answer)
    assert token_f1(answer, [reference]) == pytest.approx(expected)
    assert exact_match(answer, [reference]) == float(words == wanted)


def test_the_best_of_several_references_counts() -> None:
    assert exact_match("The Cat!", ["a dog", "cat"]) == 1
    assert token_f1("the black cat", ["a dog", "cat"]) == pytest.approx(2 / 3)


def test_each_normalisation_divides_by_its_own_length() -> None:
    choices, logprobs, tokens = ["no", "certainly", "éééé"], [-4.0, -9.0, -4.5], [1, 4, 1]
    assert preferred(choices, logprobs, tokens) == {
        "accuracy": 0,
        "accuracy_per_character": 1,  # -2, -1, -1.125
        "accuracy_per_byte": 2,  # -2, -1, -0.5625
        "accuracy_per_token": 1,  # -4, -2.25, -4.5
    }


@given(st.lists(st.floats(-2000, 0), min_size=1, max_size=8))
def test_probabilities_of_choices_sum_to_one_and_keep_their_order(logprobs: list[float]) -> None:
    found = probabilities(logprobs)
    assert found.sum() == pytest.approx(1)
    assert found[int(np.argmax(logprobs))] == found.max()
