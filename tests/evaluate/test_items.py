"""Rows as questions, and the examples before them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.base.errors import DataError
from gptcli.data.rows import Row
from gptcli.evaluate.few_shot import Shots, join
from gptcli.evaluate.items import Item, read_item
from gptcli.evaluate.options import Task


def row(**fields: object) -> Row:
    return Row("rows.jsonl:7", fields)


def test_each_task_has_a_template_of_its_own() -> None:
    assert read_item(row(text="fine", label="good"), "classify", None).prompt == "fine\nlabel:"
    question = row(question="Who?", choices=["I", "you"], answer=1)
    assert read_item(question, "choice", None).prompt == "Question: Who?\nAnswer:"
    assert read_item(row(question="Who?", answer="I"), "generate", None).prompt == "Question: Who?\nAnswer:"
    assert read_item(row(prompt="Say it", completion="it"), "generate", None).prompt == "Say it"


def test_a_template_takes_any_field_once_and_leaves_other_braces_alone() -> None:
    item = read_item(row(text="{label} {x}", label="good", title="T"), "classify", "{title}: {text} {} {a b} ->")
    assert item.prompt == "T: {label} {x} {} {a b} ->"


@pytest.mark.parametrize("answer", [1, "you"])
def test_the_right_choice_is_a_number_from_0_or_its_text(answer: int | str) -> None:
    item = read_item(row(question="Who?", choices=["I", "you"], answer=answer), "choice", None)
    assert item.answers == ("you",)
    assert item.shot == "Question: Who?\nAnswer: you"


def test_an_answer_follows_a_space_unless_the_prompt_ends_in_white_space() -> None:
    assert read_item(row(text="fine", label="good"), "classify", "{text}\n").shot == "fine\ngood"
    assert read_item(row(text="fine", label="good"), "classify", "").shot == "good"


def test_labels_may_be_numbers_and_booleans_of_json() -> None:
    assert read_item(row(text="fine", label=3), "classify", None).answers == ("3",)
    assert read_item(row(text="fine", label=True), "classify", None).answers == ("true",)


@pytest.mark.parametrize(
    ("task", "fields", "said"),
    [
        ("classify", {"text": "a"}, "no field 'label'"),
        ("classify", {"text": "  ", "label": "x"}, "field 'text' is empty"),
        ("classify", {"text": "a", "label": ""}, "the label is empty"),
        ("classify", {"text": 3, "label": "x"}, "field 'text' must be text"),
        ("choice", {"question": "q", "answer": 0}, "field 'choices' must be a list of two texts or more"),
        ("choice", {"question": "q", "choices": ["a"], "answer": 0}, "must be a list of two texts or more"),
        ("choice", {"question": "q", "choices": ["a", 3], "answer": 0}, "field 'choices' must be text"),
        ("choice", {"question": "q", "choices": ["a", ""], "answer": 0}, "a choice is empty"),
        ("choice", {"question": "q", "choices": ["a", "b"], "answer": 2}, "answer 2 is no choice; there are 2"),
        ("choice", {"question": "q", "choices": ["a", "b"], "answer": "c"}, "answer 'c' is no choice"),
        ("choice", {"question": "q", "choices": ["a", "b"]}, "no field 'answer'"),
        ("choice", {"choices": ["a", "b"], "answer": 0}, "no field 'question'"),
        ("generate", {"prompt": "p"}, "no right answer; want one of the fields answer"),
        ("generate", {"prompt": "p", "answers": []}, "field 'answers' is an empty list"),
        ("generate", {"prompt": "p", "answers": [None]}, "field 'answers' must be text"),
    ],
)
def test_a_wrong_row_is_named_with_its_place(task: Task, fields: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: ") as error:
        read_item(row(**fields), task, None)
    assert said in str(error.value)


# ---------------------------------------------------------------------------------------------------------- shots

POOL = [Item(f"f:{n}", f"q{n % 6}", (f"a{n}",)) for n in range(12)]


@given(count=st.integers(0, 10), seed=st.integers(0, 99), number=st.integers(0, 99))
def test_shots_are_distinct_rows_of_the_pool_and_never_the_evaluated_prompt(count: int, seed: int, number: int) -> None:
    shots = Shots(POOL, count, seed)
    found = shots.before(POOL[2], number)
    assert len(found) == len(set(found)) == count
    assert set(found) <= {item.shot for item in POOL if item.prompt != "q2"}
    assert found == shots.before(POOL[2], number)


def test_rows_and_seeds_draw_different_shots() -> None:
    drawn = {tuple(Shots(POOL, 5, seed).before(POOL[2], number)) for seed in range(5) for number in range(5)}
    assert len(drawn) > 20


def test_too_few_examples_are_an_error() -> None:
    with pytest.raises(DataError, match="f:2: only 10 examples beside this row, want 11; lower --shots"):
        Shots(POOL, 11, 0).before(POOL[2], 0)


@given(lengths=st.lists(st.integers(1, 9), max_size=6), room=st.integers(0, 40))
def test_what_does_not_fit_loses_whole_examples_from_the_left(lengths: list[int], room: int) -> None:
    shots = [chr(97 + index) * length for index, length in enumerate(lengths)]
    context = join(shots, "?", lambda text: len(text) <= room)
    assert context.text == "\n\n".join([*shots[context.dropped :], "?"])
    if context.dropped < len(shots):
        assert len(context.text) <= room
    if context.dropped:
        assert len("\n\n".join([*shots[context.dropped - 1 :], "?"])) > room
