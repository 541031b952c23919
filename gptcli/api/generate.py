"""Continue prompts with a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.api.records import Item, Warnings, answered, completion_record, in_order, read_items
from gptcli.api.safeguards import SafeguardOptions, make_safeguards
from gptcli.base.errors import DataError, GptcliError
from gptcli.base.ready import Ready, always
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.generate import GenerateOptions
from gptcli.data.jsonl import parse_object, text_of
from gptcli.generate.constrain import matches, most_tokens
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.packed_weights import Quantize, pack

MAX_TEXT_BYTES = 16 << 20  # of one prompt


class Writer:
    """A loaded model that continues prompts."""

    def __init__(
        self,
        run: str | Path,
        *,
        batch_size: int | None = None,
        most: int | None = None,
        quantize: Quantize | None = None,
        safeguards: SafeguardOptions | None = None,
        **how: Unpack[DeviceOptions],
    ) -> None:
        opened = open_model(run, **how)
        self.tokenizer = opened.tokenizer
        held_to = make_safeguards(self.tokenizer, **(safeguards or {}))
        runtime = pack(opened.model, opened.runtime, quantize=quantize)
        self.engine = Engine(opened.model, self.tokenizer, runtime, slots=batch_size, most=most, safeguards=held_to)

        # No control token is text: one that is drawn ends it.
        self.stop_ids = frozenset(self.tokenizer.specials.values()) - {self.tokenizer.end_of_text}

    def stream(self, prompt: str, options: GenerateOptions) -> Iterator[str]:
        """Yield the text of one sample, piece by piece, whole characters only; raises at its end as `check_match`."""
        request = self._request(self._fit(prompt, options), options)
        done = 0
        for completion in self.engine.steps([request], capacity=self._capacity(request)):
            if len(completion.text) > done:
                yield completion.text[done:]
                done = len(completion.text)
        check_match(completion)

    def samples(self, prompt: str, options: GenerateOptions) -> Iterator[Completion]:
        """Yield options.n completions of one prompt, in order."""
        ids = self._fit(prompt, options)
        requests = [self._request(ids, options, sample) for sample in range(options.n)]
        return self.engine.run(requests, capacity=self._capacity(requests[0]))

    def records(
        self, lines: Iterable[bytes], defaults: GenerateOptions, report: Report | None = None, ready: Ready = always
    ) -> Iterator[dict[str, Any]]:
        """Yield a record for every sample of every record {"prompt": ...}, in order; one with `error` where it could
        not be written.

        `ready`: whether the next line is there. While it is not, those of before are written.
        """
        report = report or Report()

        def requests(item: Item[str], prompt: str) -> Iterator[Request]:
            ids = self._fit(prompt, item.options)
            return (self._request(ids, item.options, sample) for sample in range(item.options.n))

        items, warnings = read_items(lines, defaults, text_prompt, report), Warnings(report)
        for item, completion in in_order(self.engine, items, requests, ready):
            answer = {"error": item.problem} if completion is None else completion_record(completion, self.tokenizer)
            yield answered(item.fields, answer, warnings)

    def _request(self, ids: list[int], options: GenerateOptions, sample: int = 0) -> Request:
        return Request(ids, options, sample, self.stop_ids)

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


def text_prompt(line: str, place: str) -> tuple[str, dict[str, Any]]:
    """Return the prompt of a record {"prompt": ...} and its other fields."""
    record = parse_object(line, place)
    text_of(record, "prompt", place)
    return record.pop("prompt"), record
