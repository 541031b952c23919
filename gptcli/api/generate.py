"""Continue prompts with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.chat import conversation_form, fit
from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.api.records import Item, Warnings, answered, completion_record, in_order, read_items
from gptcli.api.safeguards import SafeguardOptions, make_safeguards
from gptcli.base.errors import DataError, GptcliError
from gptcli.base.ready import Ready, always
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.generate import GenerateOptions
from gptcli.data.conversation import USER, Message
from gptcli.data.jsonl import parse_object, text_of
from gptcli.data.messages import read_messages
from gptcli.generate.constrain import matches, most_tokens
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.packed_weights import Quantize, pack

MAX_TEXT_BYTES = 16 << 20  # of one prompt

Prompt = str | Sequence[Message]  # a text to continue, or a conversation to answer


class Writer:
    """A loaded model that continues prompts, and answers conversations where it was tuned to. With `chat` a text is a
    question."""

    def __init__(
        self,
        run: str | Path,
        *,
        batch_size: int | None = None,
        most: int | None = None,
        chat: bool = False,
        quantize: Quantize | None = None,
        safeguards: SafeguardOptions | None = None,
        **how: Unpack[DeviceOptions],
    ) -> None:
        opened = open_model(run, **how)
        self.opened, self.tokenizer, self.chat = opened, opened.tokenizer, chat
        if chat:
            conversation_form(opened.directory, opened.metadata, self.tokenizer)
        held_to = make_safeguards(self.tokenizer, **(safeguards or {}))
        runtime = pack(opened.model, opened.runtime, quantize=quantize)
        self.engine = Engine(opened.model, self.tokenizer, runtime, slots=batch_size, most=most, safeguards=held_to)

    def stream(self, prompt: str, options: GenerateOptions) -> Iterator[str]:
        """Yield the text of one sample, piece by piece, whole characters only; raises at its end as `check_match`."""
        (request,) = self._requests(prompt, options, samples=1)
        done = 0
        for completion in self.engine.steps([request], capacity=self._capacity(request)):
            if len(completion.text) > done:
                yield completion.text[done:]
                done = len(completion.text)
        check_match(completion)

    def samples(self, prompt: str, options: GenerateOptions) -> Iterator[Completion]:
        """Yield options.n completions of one prompt, in order."""
        requests = self._requests(prompt, options)
        return self.engine.run(requests, capacity=self._capacity(requests[0]))

    def records(
        self, lines: Iterable[bytes], defaults: GenerateOptions, report: Report | None = None, ready: Ready = always
    ) -> Iterator[dict[str, Any]]:
        """Yield a record for every sample of every record {"prompt": ...} or {"messages": [...]}, in order; one with
        `error` where it could not be written.

        `ready`: whether the next line is there. While it is not, those of before are written.
        """
        report = report or Report()

        def requests(item: Item[Prompt], prompt: Prompt) -> list[Request]:
            return self._requests(prompt, item.options)

        items, warnings = read_items(lines, defaults, text_or_messages, report), Warnings(report)
        for item, completion in in_order(self.engine, items, requests, ready):
            answer = {"error": item.problem} if completion is None else completion_record(completion, self.tokenizer)
            yield answered(item.fields, answer, warnings)

    def _requests(self, prompt: Prompt, options: GenerateOptions, samples: int | None = None) -> list[Request]:
        if isinstance(prompt, str) and self.chat:
            prompt = [Message(USER, prompt)]
        stop_ids, first = self.tokenizer.stop_ids, None
        if isinstance(prompt, str):
            ids = self._fit(prompt, options)
        else:
            form = conversation_form(self.opened.directory, self.opened.metadata, self.tokenizer)
            ids = fit(form, self.tokenizer, prompt, options, self.engine.context_length).ids
            stop_ids, first = form.stop_ids(self.tokenizer), tuple(form.first(self.tokenizer))
        count = options.n if samples is None else samples
        return [Request(ids, options, sample, stop_ids, first=first) for sample in range(count)]

    def _fit(self, prompt: str, options: GenerateOptions) -> list[int]:
        if len(prompt) > MAX_TEXT_BYTES:
            raise DataError(f"the prompt has {len(prompt)} characters, more than {MAX_TEXT_BYTES}; shorten it")
        return self.engine.fit(self.tokenizer.encode(prompt), options)

    @staticmethod
    def _capacity(request: Request) -> int:
        return len(request.prompt) + most_tokens(request.options) + 1


def check_match(completion: Completion) -> None:
    """Raise the error of a text that could not be written, or that was cut before its pattern matched."""
    completion.check()
    options = completion.request.options
    wanted = "--regex" if options.json_schema is None else "--json-schema"
    if completion.finish_reason == "length" and not matches(options, completion.text):
        raise GptcliError(
            f"the text is cut after {count(len(completion.ids), 'token')}, before it matches {wanted}; "
            "raise --max-tokens or shorten the prompt"
        )


def text_or_messages(line: str, place: str) -> tuple[Prompt, dict[str, Any]]:
    """Return the prompt of a record {"prompt": ...} or {"messages": [...]}, and the fields to pass on, messages too."""
    record = parse_object(line, place)
    if "messages" in record:
        if "prompt" in record:
            raise DataError(f'{place}: want either "prompt" or "messages"')
        return read_messages(record["messages"], place, to_answer=True), record
    text_of(record, "prompt", place)
    return record.pop("prompt"), record
