"""The messages of a row, in the forms that people keep them in, -> the turns of a conversation.

messages       [{"role": "user", "content": "..."}, ...]    OpenAI's; content may be a list of parts of type text
conversations  [{"from": "human", "value": "..."}, ...]     ShareGPT's
prompt and completion, each such a list                     TRL's: only the completion is learnt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.data.conversation import ASSISTANT, ROLES, SYSTEM, USER, Message
from gptcli.data.jsonl import clean_text, text_of, type_name
from gptcli.data.rows import Row

# Other names of the roles, in ShareGPT's form and newer ones of OpenAI's.
ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), USER),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bing", "bard", "claude"), ASSISTANT),
    "developer": SYSTEM,
}


@dataclass
class Mended:
    """The changes that give conversations the one form that a model learns."""

    joined: int = 0  # turns put to the one before, which is of the same role
    left_out: int = 0  # turns that the form cannot hold

    def notes(self) -> list[str]:
        """Return lines for a person, none where nothing was changed."""
        return [
            *([f"{self.joined:,} turns joined to the one before, of the same role"] if self.joined else []),
            *([f"{self.left_out:,} turns left out that a conversation cannot hold"] if self.left_out else []),
        ]


def read_messages(value: Any, place: str, *, to_answer: bool = False, mended: Mended | None = None) -> list[Message]:
    """Return the messages of a row as turns. DataError at `place` where they are none.

    A system message may come first; then user and assistant take turns, the user first. To learn from, there must be
    a turn of the assistant; `to_answer`, the last must be the user's. With `mended`, which counts it, neighbours of one
    role are joined by a blank line, and what has no place in this form (tools, images, an assistant who begins, a
    system message in the middle, empty turns) is left out.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f'{place}: messages must be a list of {{"role": ..., "content": ...}}, and not empty')
    messages = _turns(value, place, mended)
    turns = messages[1:] if messages and messages[0].role == SYSTEM else messages
    offset = 1 + len(messages) - len(turns)
    for number, message in enumerate(turns):
        wanted = (USER, ASSISTANT)[number % 2]
        if message.role != wanted:
            raise DataError(
                f"{place}: message {number + offset} is the {message.role}'s, want the {wanted}'s; a system message "
                "may come first, then user and assistant take turns"
            )
    if not to_answer and not any(message.role == ASSISTANT for message in turns):
        raise DataError(f"{place}: no turn of the assistant, so nothing to learn; add one or drop the row")
    if to_answer and (not turns or turns[-1].role != USER):
        raise DataError(f"{place}: the last message must be the user's, for the model to answer")
    return messages


def row_messages(
    row: Row, field: str, prompt_field: str, completion_field: str, mended: Mended | None
) -> tuple[list[Message], int]:
    """Return the turns of a row, and how many of them come before what is learnt.

    They are in `field`, in ShareGPT's `conversations` where `field` is `messages` and the row has none, or in prompt
    and completion.
    """
    fields = row.fields
    if field not in fields and field == "messages" and "conversations" in fields:
        field = "conversations"
    if field in fields:
        value = fields[field]
        system = fields.get("system")
        if field == "conversations" and isinstance(system, str) and system.strip() and isinstance(value, list):
            value = [{"from": "system", "value": system}, *value]
        return read_messages(value, row.place, mended=mended), 0
    if isinstance(fields.get(prompt_field), list | str) and isinstance(fields.get(completion_field), list | str):
        prompt = _as_list(fields[prompt_field], USER)
        both = read_messages([*prompt, *_as_list(fields[completion_field], ASSISTANT)], row.place, mended=mended)
        return both, len(_turns(prompt, row.place, None if mended is None else Mended()))
    text_of(fields, field, row.place, advice="; name it, -s data.messages_field=NAME")
    raise AssertionError("a field that is not there")


def _as_list(value: list[Any] | str, role: str) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _turns(items: Sequence[Any], place: str, mended: Mended | None) -> list[Message]:
    """Return the messages one by one; with `mended` joined or left out so that roles take turns."""
    if mended is None:
        return [_message(item, f"{place}: message {number}") for number, item in enumerate(items, 1)]
    turns: list[Message] = []
    for number, item in enumerate(items, 1):
        try:
            message = _message(item, f"{place}: message {number}", text_parts_only=True)
        except DataError:
            mended.left_out += 1
            continue
        if turns and turns[-1].role == message.role:
            turns[-1] = Message(message.role, f"{turns[-1].content}\n\n{message.content}")
            mended.joined += 1
        elif turns if message.role == SYSTEM else message.role == ASSISTANT and all(t.role == SYSTEM for t in turns):
            mended.left_out += 1
        else:
            turns.append(message)
    return turns


def _message(item: Any, place: str, *, text_parts_only: bool = False) -> Message:
    """Return one message. `text_parts_only`: parts of its content that are no text are left out."""
    if not isinstance(item, dict):
        raise DataError(f'{place}: not an object; want {{"role": ..., "content": ...}}')
    role = item.get("role", item.get("from"))
    known = ROLE_NAMES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise DataError(f"{place}: role {escape(repr(role))}; want {', '.join(ROLES)}")
    content = item.get("content", item.get("value"))
    if isinstance(content, list):
        content = _joined_parts(content, place, text_parts_only=text_parts_only)
    if not isinstance(content, str):
        raise DataError(f"{place}: content must be text, got {type_name(content)}")
    if not content.strip():
        raise DataError(f"{place}: the content is empty; write it or drop the row")
    return Message(known, clean_text(content, f"{place}: the content"))


def _joined_parts(parts: Sequence[Any], place: str, *, text_parts_only: bool) -> str:
    """Return the texts of a list of parts, as OpenAI has them: {"type": "text", "text": ...}."""
    texts = []
    for number, part in enumerate(parts, 1):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
            texts.append(text_of(part, "text", f"{place}: part {number}"))
        elif not text_parts_only:
            kind = part.get("type") if isinstance(part, dict) else type_name(part)
            raise DataError(
                f"{place}: part {number} of the content is {escape(str(kind), 40)}; only text can be learnt"
            )
    return "".join(texts)
