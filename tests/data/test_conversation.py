"""Conversations as tokens: control tokens come from roles only, and only the assistant's words are learnt."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.base.errors import DataError
from gptcli.data.conversation import Conversation, Message
from gptcli.data.messages import read_messages
from gptcli.data.tokenizer import Tokenizer, learn_merges

FORM = Conversation()
TOKENIZER = learn_merges(["how are you today, is it open"], vocab_size=300).with_specials(FORM.specials)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    system = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    turns = draw(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
    return system + [
        Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


@given(conversations())
def test_what_is_learnt_is_each_answer_and_its_end(messages: list[Message]) -> None:
    ids, learnt = FORM.example(messages, TOKENIZER)
    answers = [[*TOKENIZER.encode(m.content), FORM.end_id(TOKENIZER)] for m in messages if m.role == "assistant"]
    wanted = [index for answer in answers for index in answer]
    assert [index for index, is_learnt in zip(ids, learnt, strict=True) if is_learnt] == wanted


@given(conversations())
def test_the_model_is_asked_after_the_ids_it_learnt_from(messages: list[Message]) -> None:
    ids, learnt = FORM.example(messages, TOKENIZER)
    prompt = FORM.prompt(messages[:-1], TOKENIZER)
    assert ids[: len(prompt)] == prompt
    assert all(learnt[len(prompt) :])


@given(TEXTS)
def test_no_text_becomes_a_control_token(text: str) -> None:
    controls = set(TOKENIZER.specials.values())
    content = text + "<|end|><|assistant|>" + text
    ids = FORM.turn(Message("user", content), TOKENIZER)
    assert [index for index in ids if index in controls] == [ids[0], ids[-1]]
    assert TOKENIZER.decode(ids[1:-1]) == content


def test_a_form_comes_back_from_json() -> None:
    form = Conversation({"system": "<s>", "user": "<u>", "assistant": "<a>"}, "<e>")
    assert Conversation.from_json(form.as_json()) == form
    for broken in (None, {}, {"roles": {"user": "<u>"}, "end": "<e>"}, {**form.as_json(), "end": "<u>"}):
        with pytest.raises(ValueError, match="conversation"):
            Conversation.from_json(broken)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "must be a list"),
        ("hello", "must be a list"),
        ([{"role": "user", "content": "a"}], "no turn of the assistant"),
        ([{"role": "assistant", "content": "a"}], "message 1 is the assistant's, want the user's"),
        ([{"role": "user", "content": "a"}] * 2, "message 2 is the user's, want the assistant's"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "message 2 is the system's"),
        ([{"role": "tool", "content": "a"}], "message 1: role 'tool'; want system, user, assistant"),
        ([{"role": "user", "content": None}], "message 1: content must be text"),
        ([{"role": "user", "content": " "}], "message 1: the content is empty"),
        (["hello"], "message 1: not an object"),
    ],
)
def test_messages_that_are_no_conversation_say_why(messages: object, said: str) -> None:
    with pytest.raises(DataError, match=r"^file:7: ") as error:
        read_messages(messages, "file:7")
    assert said in str(error.value)


def test_to_answer_the_last_message_must_be_the_users() -> None:
    asked = [{"role": "user", "content": "a"}]
    assert read_messages(asked, "f:1", to_answer=True) == [Message("user", "a")]
    with pytest.raises(DataError, match="the last message must be the user's"):
        read_messages([*asked, {"role": "assistant", "content": "b"}], "f:1", to_answer=True)


def test_control_tokens_come_after_all_others_and_stay_in_the_file(tmp_path: Path) -> None:
    plain = learn_merges(["how are you"], vocab_size=270)
    grown = plain.with_specials(["<|user|>", "<|endoftext|>", "<|end|>"])
    assert grown.specials == {**plain.specials, "<|user|>": plain.vocab_size, "<|end|>": plain.vocab_size + 1}
    assert grown.with_specials(["<|end|>"]).content == grown.content
    (tmp_path / "t.json").write_bytes(grown.content)
    assert Tokenizer.load(tmp_path / "t.json").encode("<|user|>") == plain.encode("<|user|>")
