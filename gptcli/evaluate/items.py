"""Labelled rows -> what a model is asked, and which answers are right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.example import label_of
from gptcli.data.rows import Row
from gptcli.evaluate.options import Task

REFERENCES = ("answer", "answers", "reference", "references", "completion")  # fields with the right answers
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Item:
    """One row as a question."""

    place: str  # FILE:LINE
    prompt: str  # the row in the template
    answers: tuple[str, ...]  # the right ones: a label, a choice, or texts of which any will do
    choices: tuple[str, ...] = ()  # of the task choice
    text: str = ""  # of the task classify, without the template; of the task pairs, the group

    @property
    def shot(self) -> str:
        """Return the row as an example for others: its prompt and the first right answer."""
        return self.prompt + continuation(self.prompt, self.answers[0])


def continuation(prompt: str, answer: str) -> str:
    """Return an answer as it follows a prompt: after a space, unless the prompt is empty or ends in white space."""
    return answer if not prompt or prompt[-1].isspace() else " " + answer


def default_template(task: Task, row: Row) -> str:
    """Return how a row becomes a prompt where the user says nothing."""
    match task:
        case "pairs":
            return ""
        case "classify":
            return "{text}\nlabel:"
        case "generate" if "prompt" in row.fields:
            return "{prompt}"
        case _:
            return "Question: {question}\nAnswer:"


def names_field(template: str) -> bool:
    """Return whether anything of a row gets into its prompt."""
    return _FIELD.search(template) is not None


def read_item(row: Row, task: Task, template: str | None) -> Item:
    """Return the question a row asks; DataError, with its place, where a field is missing or wrong."""
    template = default_template(task, row) if template is None else template
    prompt = _FIELD.sub(lambda match: row.text(match[1]), template)
    match task:
        case "classify":
            return Item(row.place, prompt, (label_of(row, "label"),), text=_filled(row, "text"))
        case "pairs":
            more, less = _filled(row, "more"), _filled(row, "less")
            group = row.text("group") if row.fields.get("group") is not None else ""
            return Item(row.place, prompt, (more,), (more, less), group)
        case "choice":
            choices = _texts(row, "choices")
            return Item(row.place, prompt, (choices[_right_choice(row, choices)],), choices)
        case "generate":
            name = next((name for name in REFERENCES if name in row.fields), None)
            if name is None:
                raise DataError(f"{row.place}: no right answer; want one of the fields {', '.join(REFERENCES)}")
            return Item(row.place, prompt, _texts(row, name))


def _filled(row: Row, name: str) -> str:
    text = row.text(name)
    if not text.strip():
        raise DataError(f"{row.place}: field '{name}' is empty; write it or drop the row")
    return text


def _texts(row: Row, name: str) -> tuple[str, ...]:
    """Return a text, or a list of texts, that a field must have."""
    value: Any = row.fields.get(name)
    texts = value if isinstance(value, list) else [value]
    if name == "choices" and not (isinstance(value, list) and len(value) > 1):
        raise DataError(f"{row.place}: field 'choices' must be a list of two texts or more")
    if not texts:
        raise DataError(f"{row.place}: field '{name}' is an empty list; want a text in it")
    single = [Row(row.place, {name: text}).text(name) for text in texts]
    if name == "choices" and not all(text.strip() for text in single):
        raise DataError(f"{row.place}: a choice is empty; write it or drop the row")
    return tuple(single)


def _right_choice(row: Row, choices: tuple[str, ...]) -> int:
    """Return the place of the right choice, given as its number from 0 or as its text."""
    answer = row.fields.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return answer
        raise DataError(f"{row.place}: answer {answer} is no choice; there are {len(choices)}, counted from 0")
    text = row.text("answer")
    if text not in choices:
        known = escape(", ".join(map(repr, choices)))
        raise DataError(f"{row.place}: answer '{escape(text)}' is no choice; want a number from 0, or one of {known}")
    return choices.index(text)
