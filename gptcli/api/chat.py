"""Checkpoint and conversation -> the assistant's next turn.

Where a conversation outgrows the context, the model no longer sees its oldest turns: as many questions, each with its
answer, as leave room for an answer of max_tokens or a quarter of the context, whichever is less. The system message
and the last question are always seen.
"""

from __future__ import annotations

import bisect
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.api.records import Item, Warnings, answered, completion_record, in_order, read_items
from gptcli.api.safeguards import SafeguardOptions, make_safeguards
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.ready import Ready, always
from gptcli.base.report import Report
from gptcli.config.generate import GenerateOptions
from gptcli.data.conversation import ASSISTANT, SYSTEM, USER, Message
from gptcli.data.jsonl import parse_object
from gptcli.data.messages import read_messages
from gptcli.data.rows import read_rows
from gptcli.data.template import Form
from gptcli.data.tokenizer import Tokenizer
from gptcli.generate.constrain import most_tokens
from gptcli.generate.engine import Engine, Request
from gptcli.generate.packed_weights import Quantize, pack
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import ModelMetadata, read_metadata


class Fitted(NamedTuple):
    """The part of a conversation that the model sees."""

    ids: list[int]
    dropped_turns: int  # oldest questions, each with its answer, that did not fit


class Speaker:
    """A loaded model that answers conversations."""

    def __init__(
        self,
        run: str | Path,
        *,
        batch_size: int | None = 1,
        quantize: Quantize | None = None,
        safeguards: SafeguardOptions | None = None,
        **how: Unpack[DeviceOptions],
    ) -> None:
        directory = find_checkpoint(run)
        metadata = read_metadata(directory)
        if metadata.conversation is None:
            raise DataError(not_conversational(directory))
        opened = open_model(directory, **how)
        model, self.tokenizer = opened.model, opened.tokenizer
        conversation = conversation_form(directory, metadata, self.tokenizer)
        self.directory, self.conversation, self.num_parameters = directory, conversation, model.num_parameters()
        held_to = make_safeguards(self.tokenizer, **(safeguards or {}))
        runtime = pack(model, opened.runtime, quantize=quantize)
        self.engine = Engine(model, self.tokenizer, runtime, slots=batch_size, safeguards=held_to)
        self.stop_ids = conversation.stop_ids(self.tokenizer)

    def description(self) -> str:
        """Describe the model to a person who begins to talk."""
        return (
            f"{escape(str(self.directory))}: {self.num_parameters:,} parameters, "
            f"context of {self.engine.context_length} tokens"
        )

    def fit(self, messages: Sequence[Message], options: GenerateOptions) -> Fitted:
        """Return the ids after which the answer to the last message is written, by the rule above; DataError where not
        even system message and question fit, or where the options cannot be used."""
        self.engine.check(options)
        return fit(self.conversation, self.tokenizer, messages, options, self.engine.context_length)

    def request(self, ids: list[int], options: GenerateOptions, sample: int = 0) -> Request:
        """Return the answer to write after ids that `fit` gave."""
        first = tuple(self.conversation.first(self.tokenizer))
        return Request(ids, options, sample, self.stop_ids, first=first)

    def records(
        self, lines: Iterable[bytes], defaults: GenerateOptions, report: Report | None = None, ready: Ready = always
    ) -> Iterator[dict[str, Any]]:
        """Yield a record with its answer for each record {"messages": [...]} or {"content": ...}, which may have
        options of its own and other fields, which come back; one with `error` where it has no answer."""
        report = report or Report()

        def requests(item: Item[list[Message]], messages: list[Message]) -> Iterator[Request]:
            ids, item.dropped_turns = self.fit(messages, item.options)
            return (self.request(ids, item.options, sample) for sample in range(item.options.n))

        items, warnings = read_items(lines, defaults, _record_messages, report), Warnings(report)
        for item, completion in in_order(self.engine, items, requests, ready):
            if completion is None or item.prompt is None:
                yield answered(item.fields, {"error": item.problem}, warnings)
                continue
            record = dict(item.fields)
            if "messages" in record:
                answer = Message(ASSISTANT, completion.text)
                record["messages"] = [message._asdict() for message in (*item.prompt, answer)]
            answer_record = completion_record(completion, self.tokenizer) | {"dropped_turns": item.dropped_turns}
            yield answered(record, answer_record, warnings)


def not_conversational(directory: Path) -> str:
    """Tell why a checkpoint cannot be talked to, and the way out."""
    return (
        f"{escape(str(directory))}: was not trained on conversations; fine-tune it with gptcli finetune and "
        "task: chat, or continue a text with gptcli generate"
    )


def conversation_form(directory: Path, metadata: ModelMetadata, tokenizer: Tokenizer) -> Form:
    """Return the form in which a checkpoint takes conversations; DataError where it has none, or lacks its tokens."""
    form = metadata.conversation
    if form is None:
        raise DataError(not_conversational(directory))
    if missing := form.missing(tokenizer):
        raise DataError(
            f"{escape(str(directory / 'tokenizer.json'))}: no token {escape(missing[0])}, which conversations need; "
            "the checkpoint is damaged"
        )
    return form


def fit(
    form: Form, tokenizer: Tokenizer, messages: Sequence[Message], options: GenerateOptions, context_length: int
) -> Fitted:
    """Fit a conversation into the context as Speaker.fit does, for any form of conversation."""
    answer = most_tokens(options) if options.choices else min(options.max_tokens, context_length // 4)
    room = context_length - len(form.first(tokenizer)) - answer
    begin = 1 if messages[0].role == SYSTEM else 0
    most = (len(messages) - begin - 1) // 2  # questions before the last, each with its answer

    @functools.cache
    def without(turns: int) -> list[int]:
        return form.prompt([*messages[:begin], *messages[begin + 2 * turns :]], tokenizer)

    dropped = bisect.bisect_left(range(most), True, key=lambda turns: len(without(turns)) <= room)
    if len(ids := without(dropped)) > room:
        raise DataError(
            f"the question has {len(ids)} tokens, any system message included, and a context of {context_length} has "
            f"room for {room} beside the answer; shorten it"
        )
    return Fitted(ids, dropped)


def _record_messages(line: str, place: str) -> tuple[list[Message], dict[str, Any]]:
    """Return the conversation of a record and its fields, `messages` or `content` among them."""
    record = parse_object(line, place)
    if ("messages" in record) == ("content" in record):
        raise DataError(f'{place}: want either "messages" or "content"')
    messages = record["messages"] if "messages" in record else [{"role": USER, "content": record["content"]}]
    return read_messages(messages, place, to_answer=True), record


@dataclass
class Turn:
    """A question and what was answered. One without an answer is neither seen by the model nor saved."""

    question: str
    answer: str = ""
    finish_reason: str | None = None  # None where the answer was stopped
    attempt: int = 0

    def messages(self) -> list[Message]:
        return [Message(USER, self.question), Message(ASSISTANT, self.answer)] if self.answer.strip() else []


class Chat:
    """A conversation with a model. `system` and `options` may be changed at any time."""

    def __init__(self, speaker: Speaker, options: GenerateOptions, *, system: str | None, report: Report) -> None:
        self.speaker, self.options, self.system, self.report = speaker, options, system, report
        self.turns: list[Turn] = []
        self.dropped_turns = 0

    def messages(self) -> list[Message]:
        """Return the conversation as it is saved: complete turns only."""
        system = [] if self.system is None else [Message(SYSTEM, self.system)]
        return system + [message for turn in self.turns for message in turn.messages()]

    def ask(self, question: str, *, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Return the answer, piece by piece, whole characters only; `stop` ends it after the token in hand.

        What was said stays in the conversation. DataError, and no new turn, where the question cannot be asked.
        """
        ids = self._fit(question)
        turn = Turn(question)
        self.turns.append(turn)
        return self._answer(turn, ids, stop)

    def retry(self, *, stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Answer the last question again, in the place of the answer before."""
        last = self.undo()
        try:
            ids = self._fit(last.question)
        finally:
            self.turns.append(last)
        self.turns[-1] = turn = Turn(last.question, attempt=last.attempt + 1)
        return self._answer(turn, ids, stop)

    def undo(self) -> Turn:
        """Take back the last question and its answer."""
        if not self.turns:
            raise ConfigError("nothing was said yet")
        return self.turns.pop()

    def _fit(self, question: str) -> list[int]:
        """Return ids of the prompt; the report is told where more turns than before do not fit."""
        if not question.strip():
            raise DataError("the question is empty; write one")
        ids, dropped = self.speaker.fit([*self.messages(), Message(USER, question)], self.options)
        if dropped > self.dropped_turns:
            which = "oldest question and its answer" if dropped == 1 else f"{dropped} oldest questions and answers"
            self.report.warning(
                f"the context of {self.speaker.engine.context_length} tokens is full; the model no longer sees "
                f"the {which}"
            )
        self.dropped_turns = dropped
        return ids

    def _answer(self, turn: Turn, ids: list[int], stop: Callable[[], bool]) -> Iterator[str]:
        request = self.speaker.request(ids, self.options, turn.attempt)
        for completion in self.speaker.engine.steps([request]):
            completion.check()
            new = completion.text[len(turn.answer) :]
            turn.answer, turn.finish_reason = completion.text, completion.finish_reason
            if new:
                yield new
            if turn.finish_reason is None and stop():
                return

    def save(self, path: Path) -> int:
        """Append the conversation to a JSONL file, as a row that `gptcli finetune` reads; returns its messages."""
        messages = self.messages()
        if not any(message.role == ASSISTANT for message in messages):
            raise ConfigError("there is no answer to save yet")
        row = json.dumps({"messages": [message._asdict() for message in messages]}, ensure_ascii=False)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                row = row if file.read(1) == b"\n" else "\n" + row
            file.write((row + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        return len(messages)

    def load(self, path: str) -> None:
        """Go on with the last conversation of a JSONL file; its system message holds where none was given."""
        last = None
        for row in read_rows([path]):
            if isinstance(row, DataError):
                raise row
            last = row
        if last is None:
            raise DataError(f"{escape(path)}: no conversation in it")
        messages = read_messages(last.fields.get("messages"), last.place)
        if messages[-1].role == USER:
            raise DataError(
                f"{last.place}: ends with a question; gptcli chat RUN --jsonl answers it, or end it with an answer"
            )
        if messages[0].role == SYSTEM:
            system, *messages = messages
            self.system = system.content if self.system is None else self.system
        pairs = zip(messages[::2], messages[1::2], strict=True)
        self.turns = [Turn(question.content, answer.content, "stop") for question, answer in pairs]
        self.dropped_turns = 0
