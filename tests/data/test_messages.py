"""Conversations as public sets have them, and what is mended where that is wanted."""

from typing import Any

import pytest

from gptcli.base.errors import DataError
from gptcli.data.conversation import Message
from gptcli.data.messages import Mended, read_messages, row_messages
from gptcli.data.rows import Row

ASKED = [Message("user", "Hi"), Message("assistant", "Yes")]


def said(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def turns_of(fields: dict[str, Any], mended: Mended | None = None) -> tuple[list[Message], int]:
    return row_messages(Row("f:1", fields), "messages", "prompt", "completion", mended)


def test_the_forms_of_public_sets_are_one() -> None:
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
    parts = [said("user", [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]), said("assistant", "Yes")]
    assert turns_of({"conversations": sharegpt}) == (ASKED, 0)
    assert turns_of({"conversations": sharegpt, "system": "S"}) == ([Message("system", "S"), *ASKED], 0)
    assert turns_of({"messages": parts}) == (ASKED, 0)
    assert turns_of({"prompt": [said("user", "Hi")], "completion": [said("assistant", "Yes")]}) == (ASKED, 1)
    assert turns_of({"prompt": [said("user", "Hi")], "completion": "Yes"}) == (ASKED, 1)
    assert turns_of({"messages": [said("developer", "S"), *parts]})[0][0] == Message("system", "S")


def test_what_is_no_conversation_names_the_setting_or_the_part() -> None:
    with pytest.raises(
        DataError, match=r"f:1: no field 'messages'; it has 'talk'; name it, -s data.messages_field=NAME"
    ):
        turns_of({"talk": []})
    image = [said("user", [{"type": "image_url"}]), said("assistant")]
    with pytest.raises(DataError, match="message 1: part 1 of the content is image_url; only text can be learnt"):
        read_messages(image, "f:1")


@pytest.mark.parametrize(
    ("items", "roles", "joined", "left_out"),
    [
        ([said("user"), said("user"), said("assistant"), said("assistant")], "user assistant", 2, 0),
        ([said("assistant"), said("user"), said("assistant")], "user assistant", 0, 1),
        ([said("system"), said("assistant"), said("user"), said("assistant")], "system user assistant", 0, 1),
        ([said("user"), said("system"), said("assistant")], "user assistant", 0, 1),
        ([said("system", ""), said("user"), said("assistant")], "user assistant", 0, 1),
        (
            [said("user"), said("assistant", None, tool_calls=[1]), said("tool"), said("assistant")],
            "user assistant", 0, 2,
        ),
        (
            [said("user", [{"type": "image_url"}, {"type": "text", "text": "x"}]), said("assistant")],
            "user assistant", 0, 0,
        ),
        ([said("system"), said("developer"), said("user"), said("assistant")], "system user assistant", 1, 0),
    ],
)  # fmt: skip
def test_turns_are_joined_or_left_out_and_counted(items: list[Any], roles: str, joined: int, left_out: int) -> None:
    mended = Mended()
    found = read_messages(items, "f:1", mended=mended)
    assert " ".join(message.role for message in found) == roles
    assert (mended.joined, mended.left_out) == (joined, left_out)
    assert len(mended.notes()) == (joined > 0) + (left_out > 0)


def test_a_conversation_without_an_answer_stays_a_bad_row() -> None:
    with pytest.raises(DataError, match="no turn of the assistant"):
        read_messages([said("user"), said("tool")], "f:1", mended=Mended())
