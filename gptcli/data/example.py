"""Rows as examples: token ids, and which of them, or which label, is learnt.

Every example begins with <|endoftext|>, as every window a model ever sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gptcli.base.errors import DataError
from gptcli.data.rows import Row


class Example(NamedTuple):
    """One row as the model gets it."""

    place: str  # FILE:LINE
    ids: list[int]
    learnt: list[bool]  # whether each id is predicted from those before it; none of them where there is a label
    label: int | None
    truncated: bool
    rejected: Example | None = None  # the answer that is liked less, where the row is a pair of answers
    value: float = 0.0  # a number that comes with it: the log-probability that a reference model gives what is learnt
    row: Mapping[str, Any] | None = None  # its fields, where it is a prompt that a model answers while it learns

    @property
    def sequences(self) -> tuple[Example, ...]:
        """Return what a model reads: the example, and the other answer of a pair."""
        return (self,) if self.rejected is None else (self, self.rejected)

    @property
    def tokens(self) -> int:
        """Count the ids in its sequences."""
        return sum(len(sequence.ids) for sequence in self.sequences)

    @property
    def unlearnable(self) -> bool:
        """Return whether a sequence of it has no learnt token; the first never is, since nothing stands before it to
        predict it from."""
        if self.label is not None or self.row is not None:
            return False
        return not all(any(sequence.learnt[1:]) for sequence in self.sequences)


Reader = Callable[[Row], Example]


def cut_example(place: str, ids: list[int], learnt: list[bool], max_tokens: int) -> Example:
    """Make an example of at most `max_tokens`; what is too long loses its end."""
    return Example(place, ids[:max_tokens], learnt[:max_tokens], None, len(ids) > max_tokens)


def named_by(key: str) -> str:
    """Return the advice for a field that a row has not: the setting that names it."""
    return f"; name it, -s data.{key}=NAME"


def label_text(text: str) -> str:
    """Return the text with a space before it, unless it has one, so that a classifier's first word is its usual
    token."""
    return text if text[:1].isspace() else " " + text


def label_of(row: Row, name: str) -> str:
    """Return the label of a row: text, or a whole number (3.0 is 3) or boolean as JSON writes it."""
    value = row.fields.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (bool, int)):
        return str(value).lower()
    label = row.text(name, advice=named_by("label_field"))
    if not label.strip():
        raise DataError(f"{row.place}: the label is empty; write it or drop the row")
    return label
