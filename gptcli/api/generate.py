"""Checkpoint and prompts -> text."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.api.score import parse_record
from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import shown
from gptcli.base.ready import Ready, always
from gptcli.base.units import count
from gptcli.config.generate import GenerateOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.generate.constrain import automaton_of, matches, most_tokens
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.packed_weights import Quantize, pack

OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(GenerateOptions))
MAX_TEXT_BYTES = 16 << 20  # of one prompt


Prompt = TypeVar("Prompt")


@dataclass
class Item(Generic[Prompt]):
    """One prompt with its options and the fields to pass on, or why it cannot be written."""

    prompt: Prompt | None  # None where there is a problem
    options: GenerateOptions
    fields: dict[str, Any]
    problem: str | None = None
    dropped_turns: int = 0  # of a conversation, that do not fit the context


class Writer:
    """A loaded model that continues prompts."""

    def __init__(
        self,
        run: str | Path,
        *,
        batch_size: int | None = None,
        most: int | None = None,
        quantize: Quantize | None = None,
        **how: Unpack[DeviceOptions],
    ) -> None:
        opened = open_model(run, **how)
        self.tokenizer = opened.tokenizer
        runtime = pack(opened.model, opened.runtime, quantize=quantize)
        self.engine = Engine(opened.model, self.tokenizer, runtime, slots=batch_size, most=most)

    def stream(self, prompt: str, options: GenerateOptions) -> Iterator[str]:
        """The text of one sample, piece by piece, whole characters only; at its end as check_match."""
        ids = self._fit(prompt, options)
        done = 0
        for completion in self.engine.steps([Request(ids, options)], capacity=self._capacity(ids, options)):
            if len(completion.text) > done:
                yield completion.text[done:]
                done = len(completion.text)
        check_match(completion)

    def samples(self, prompt: str, options: GenerateOptions) -> Iterator[Completion]:
        """options.n completions of one prompt, in order."""
        ids = self._fit(prompt, options)
        requests = (Request(ids, options, sample) for sample in range(options.n))
        return self.engine.run(requests, capacity=self._capacity(ids, options))

    def records(self, items: Iterable[Item[str]], ready: Ready = always) -> Iterator[dict[str, Any]]:
        """A record for every sample of every item, in order; one with `error` where an item has a problem.

        `ready`: whether the next item is there. While it is not, those of before are written.
        """

        def requests(item: Item[str], prompt: str) -> Iterator[Request]:
            ids = self._fit(prompt, item.options)
            return (Request(ids, item.options, sample) for sample in range(item.options.n))

        for item, completion in in_order(self.engine, items, requests, ready):
            what = {"error": item.problem} if completion is None else completion_record(completion, self.tokenizer)
            yield {**item.fields, **what}

    def _fit(self, prompt: str, options: GenerateOptions) -> list[int]:
        if len(prompt) > MAX_TEXT_BYTES:
            raise DataError(f"the prompt has {len(prompt)} characters, more than {MAX_TEXT_BYTES}; shorten it")
        return self.engine.fit(self.tokenizer.encode(prompt), options)

    @staticmethod
    def _capacity(ids: list[int], options: GenerateOptions) -> int:
        return len(ids) + most_tokens(options) + 1


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


def in_order(
    engine: Engine,
    items: Iterable[Item[Prompt]],
    requests: Callable[[Item[Prompt], Prompt], Iterable[Request]],
    ready: Ready,
) -> Iterator[tuple[Item[Prompt], Completion | None]]:
    """Every item with each completion of its requests, in order, written as the engine has room; an item with a
    problem, found here or before, with None."""
    owners: deque[Item[Prompt]] = deque()  # of the requests that have no completion yet
    ahead = 0  # requests of the last item that are still to come

    def all_requests() -> Iterator[Request]:
        nonlocal ahead
        for item in items:
            made: Iterable[Request] = (Request([], item.options, void=True),)
            if item.prompt is not None:
                try:
                    made = requests(item, item.prompt)
                except GptcliError as error:
                    item.prompt, item.problem = None, str(error)
            ahead = 1 if item.prompt is None else item.options.n
            for request in made:
                owners.append(item)
                ahead -= 1
                yield request

    for completion in engine.run(all_requests(), ready=lambda: ahead > 0 or ready(), keep_failed=True):
        item = owners.popleft()
        yield item, None if completion.request.void else completion


def completion_record(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """A completion as JSON."""
    options = completion.request.options
    record: dict[str, Any] = {"text": completion.text}
    if options.n > 1:
        record["sample"] = completion.request.sample
    record |= {
        "finish_reason": completion.finish_reason,
        **({} if completion.error is None else {"error": str(completion.error)}),
        "prompt_tokens": len(completion.request.prompt),
        "tokens": len(completion.ids),
    }
    if options.prompt_logprobs:
        record["prompt_logprobs"] = _token_records(
            tokenizer, completion.request.prompt, completion.prompt_logprobs, completion.prompt_alternatives
        )
    if options.logprobs:
        record["logprobs"] = _token_records(tokenizer, completion.ids, completion.logprobs, completion.alternatives)
    return record


def _token_records(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    logprobs: Sequence[float | None],
    alternatives: Sequence[Sequence[tuple[int, float]]],
) -> list[dict[str, Any]]:
    """Tokens as JSON, each with the likeliest at its place where there are such."""
    records = [_token_record(tokenizer, index, value) for index, value in zip(ids, logprobs, strict=False)]
    for record, likeliest in zip(records, alternatives, strict=False):
        record["top"] = [_token_record(tokenizer, index, value) for index, value in likeliest]
    return records


def _token_record(tokenizer: Tokenizer, index: int, logprob: float | None) -> dict[str, Any]:
    return {"id": index, "token": tokenizer.decode([index]), "logprob": logprob}


def text_prompt(line: str, place: str) -> tuple[str, dict[str, Any]]:
    """The prompt of a record {"prompt": ...} and its other fields."""
    record = parse_record(line, place, "prompt")
    return record.pop("prompt"), record


def read_items(
    lines: Iterable[bytes],
    defaults: GenerateOptions,
    parse: Callable[[str, str], tuple[Prompt, dict[str, Any]]],
) -> Iterator[Item[Prompt]]:
    """Records of a prompt, which `parse` takes out of a line, options and other fields; a bad line becomes an item
    with a problem."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"stdin:{number}"
        fields: dict[str, Any] = {}
        try:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: byte 0x{line[error.start]:02x} is not UTF-8") from None
            prompt, record = parse(text, place)
            fields = {name: value for name, value in record.items() if name not in OPTION_NAMES}
            given = {name: value for name, value in record.items() if name in OPTION_NAMES}
            yield Item(prompt, options_of(defaults, given, place), fields)
        except GptcliError as error:
            fields = fields or salvage(line)
            yield Item(None, defaults, fields, problem="; ".join(error.problems))


def salvage(line: bytes) -> dict[str, Any]:
    """The id of a record that is wrong otherwise, so that its error can be told from the others."""
    try:
        record = json.loads(line)
        return {"id": record["id"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def options_of(defaults: GenerateOptions, given: dict[str, Any], place: str) -> GenerateOptions:
    """The defaults with a record's own options; DataError for a wrong type or value."""
    changes = {}
    for name, value in given.items():
        default = getattr(defaults, name)
        if isinstance(default, tuple):
            value = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
            fits = isinstance(value, tuple) and all(isinstance(stop, str) for stop in value)
        elif name == "top_k":
            fits = value is None or type(value) is int
        elif name in ("regex", "json_schema"):
            fits = value is None or isinstance(value, str)
        elif name == "logprobs":  # true is 1
            fits = type(value) in (bool, int)
            value = int(value) if fits else value
        elif isinstance(default, float):
            fits = type(value) in (int, float)
        else:
            fits = type(value) is type(default)
        if not fits:
            raise DataError(f"{place}: {name}: wrong type of value {shown(repr(value))}")
        changes[name] = value
    try:
        chosen = dataclasses.replace(defaults, **changes)
        automaton_of(chosen)
        return chosen
    except ConfigError as error:
        raise DataError(*(f"{place}: {problem}" for problem in error.problems)) from None
