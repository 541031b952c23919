"""The form of a conversation as tokens: every turn is its role's control token, its text, and the end token.

    <|system|>You answer briefly.<|end|><|user|>Open on Sunday?<|end|><|assistant|>No.<|end|>

The form is part of a checkpoint (config.json). Turns are encoded one by one and control tokens are inserted as ids, so
that no text ever becomes one, and the ids of a conversation begin with the ids of its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gptcli.data.tokenizer import Tokenizer

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """The control tokens of a conversation; the model writes the turns of the assistant and ends each with `end`."""

    roles: Mapping[str, str] = field(default_factory=lambda: {role: f"<|{role}|>" for role in ROLES})
    end: str = "<|end|>"

    @property
    def specials(self) -> tuple[str, ...]:
        """Return the control tokens that a tokenizer must have."""
        return (*self.roles.values(), self.end)

    def as_json(self) -> dict[str, Any]:
        return {"roles": dict(self.roles), "end": self.end}

    @classmethod
    def from_json(cls, document: Any) -> Conversation:
        """Read the form from its JSON; ValueError where a role or the end has no token of its own."""
        roles = document.get("roles") if isinstance(document, dict) else None
        if not isinstance(roles, dict) or set(roles) != set(ROLES):
            raise ValueError(f"conversation.roles must name the tokens of {', '.join(ROLES)}")
        names = [*roles.values(), document.get("end")]
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError("conversation: the tokens must be distinct names")
        return cls({role: roles[role] for role in ROLES}, document["end"])

    def missing(self, tokenizer: Tokenizer) -> list[str]:
        """Return the control tokens that the tokenizer does not have."""
        return [name for name in self.specials if name not in tokenizer.specials]

    def first(self, tokenizer: Tokenizer) -> list[int]:
        """Return what a window begins with before the conversation."""
        return tokenizer.bos_ids

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return the tokens that end what the model writes: all control tokens, none of which is a part of an
        answer."""
        return frozenset(tokenizer.specials.values())

    def end_id(self, tokenizer: Tokenizer) -> int:
        """Return the token that ends the model's turn."""
        return tokenizer.specials[self.end]

    def turn(self, message: Message, tokenizer: Tokenizer) -> list[int]:
        """Return ids of one whole turn."""
        role = tokenizer.specials[self.roles[message.role]]
        return [role, *tokenizer.encode(message.content), self.end_id(tokenizer)]

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Return ids after which the model writes the assistant's next turn; without the token that begins every
        window."""
        ids = [index for message in messages for index in self.turn(message, tokenizer)]
        return [*ids, tokenizer.specials[self.roles[ASSISTANT]]]

    def example(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Encode a conversation as (ids, loss mask): the assistant's words and the token that ends them are learnt."""
        ids: list[int] = []
        learnt: list[bool] = []
        for message in messages:
            turn = self.turn(message, tokenizer)
            ids += turn
            learnt += [False] + [message.role == ASSISTANT] * (len(turn) - 1)
        return ids, learnt
