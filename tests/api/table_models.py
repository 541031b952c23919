"""Models whose answers are known: a table, token -> next token, in place of what is learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptcli.config.model import ModelConfig
from gptcli.data.conversation import ASSISTANT, SYSTEM, USER, Conversation, Message
from gptcli.data.tokenizer import learn_merges
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.metadata import ModelMetadata

FORM = Conversation()

ONE_THREAD = ("--threads", "1")  # more only wait for each other in models so small


def table_model(
    directory: Path,
    paths: Sequence[str | list[str]],
    *,
    context_length: int = 256,
    breaks_after: str = "",
    origin: dict[str, str] | None = None,
) -> Path:
    """A checkpoint that answers with any of `paths`, all as likely; a path given as a list goes round for ever. Each
    token is a byte. After the character `breaks_after` a logit is not finite."""
    tokenizer = learn_merges(["-"], vocab_size=257).with_specials(FORM.specials)
    size = tokenizer.vocab_size
    shape: dict[str, Any] = {"num_layers": 1, "num_heads": 1, "head_dim": 2, "hidden_size": size}
    model = GPT(ModelConfig(**shape, context_length=context_length, vocab_size=size))
    model.initialize(torch.Generator().manual_seed(1))  # projections begin at zero: the blocks add nothing
    start, end = tokenizer.specials[FORM.roles[ASSISTANT]], FORM.end_id(tokenizer)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(size))
        model.head.weight.fill_(-20.0)
        for path in paths:
            ids = tokenizer.encode("".join(path))
            goal = [*ids, ids[0] if isinstance(path, list) else end]
            for here, there in zip([start, *ids], goal, strict=True):
                model.head.weight[there, here] = 20.0
        for index in tokenizer.encode(breaks_after):
            model.head.weight[0, index] = 3e38  # times the norm's gain more than a float32 holds
    directory.mkdir(parents=True)
    metadata = ModelMetadata(conversation=FORM, origin=origin or {})
    checkpoint.save_model(model, tokenizer, directory, step=1, metadata=metadata)
    return directory


def messages(*turns: str, system: str | None = None) -> list[Message]:
    roles = [(USER, ASSISTANT)[number % 2] for number in range(len(turns))]
    head = [] if system is None else [Message(SYSTEM, system)]
    return head + [Message(role, text) for role, text in zip(roles, turns, strict=True)]


def row(*turns: str, system: str | None = None) -> str:
    return json.dumps({"messages": [message._asdict() for message in messages(*turns, system=system)]}) + "\n"
