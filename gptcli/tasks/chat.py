"""Conversations: the assistant's turns, learnt after all that was said before them."""

from __future__ import annotations

from collections.abc import Sequence

from gptcli.base.errors import DataError
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.data.conversation import ASSISTANT, Conversation, Message
from gptcli.data.example import Example, Reader, cut_example
from gptcli.data.messages import Mended, row_messages
from gptcli.data.rows import Row
from gptcli.data.template import Form
from gptcli.data.tokenizer import Tokenizer
from gptcli.tasks.instruct import validate_targets
from gptcli.tasks.task import Task
from gptcli.train.loss import next_token_nats
from gptcli.train.metadata import ModelMetadata


def chat(config: FinetuneConfig, tokenizer: Tokenizer, base: ModelMetadata, max_tokens: int) -> Task:
    """Make the task, in the form of conversation that the base has."""
    form = base.conversation or Conversation()
    tokenizer = tokenizer.with_specials(form.specials)
    mended = Mended() if config.data.turns == "mend" else None
    reader = _reader(config.data, tokenizer, form, max_tokens, mended)
    metadata = ModelMetadata(conversation=form)
    return Task(tokenizer, metadata, reader, lambda _: next_token_nats, validate_targets, mended=mended)


def _reader(data: RowsConfig, tokenizer: Tokenizer, form: Form, max_tokens: int, mended: Mended | None) -> Reader:
    """Read a conversation, of which the assistant's turns are learnt: all, or those of TRL's completion."""

    def read(row: Row) -> Example:
        messages, given = row_messages(row, data.messages_field, data.prompt_field, data.completion_field, mended)
        return conversation_example(row.place, messages, given, form, tokenizer, max_tokens)

    return read


def conversation_example(
    place: str, messages: Sequence[Message], given: int, form: Form, tokenizer: Tokenizer, max_tokens: int
) -> Example:
    """Return a conversation as an example, of which the assistant's turns are learnt that come after the first `given`
    messages. DataError where the form cannot hold it."""
    try:
        ids, learnt = form.example(messages, tokenizer)
    except DataError as error:
        raise DataError(*(f"{place}: {problem}" for problem in error.problems)) from None
    for _ in (message for message in messages[:given] if message.role == ASSISTANT):
        start = learnt.index(True)
        end = learnt.index(False, start) if False in learnt[start:] else len(learnt)
        learnt[start:end] = [False] * (end - start)
    first = form.first(tokenizer)
    return cut_example(place, first + ids, [False] * len(first) + learnt, max_tokens)
