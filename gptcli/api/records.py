"""Read JSONL records of `generate` and `chat`: a prompt or conversation, its options, and other fields.

Options of a record stand under "options", where an unknown name is refused. Beside the prompt they are accepted too,
for records that only ask: those of PLAIN_WORDS, which may be data as well ("choices" of a test, "n" of a count), only
where the record has no fields of its own but an id. All other fields come back with the answer.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import escape
from gptcli.base.ready import Ready
from gptcli.base.report import Report
from gptcli.config.generate import GenerateOptions
from gptcli.data.jsonl import decode_line
from gptcli.data.tokenizer import Tokenizer
from gptcli.generate.constrain import automaton_of
from gptcli.generate.engine import Completion, Engine, Request

OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(GenerateOptions))
PLAIN_WORDS = frozenset(("n", "seed", "stop", "truncate", "choices", "regex", "lookup"))
NO_DATA = frozenset(("id", "messages", "content"))  # beside which plain words are options
ELSEWHERE = {  # names that other programs have for an option
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "num_return_sequences": "n",
    "do_sample": "temperature",
    "repeat_penalty": "repetition_penalty",
    "top_logprobs": "logprobs",
    "ignore_eos": "stop_at_eos",
    "guided_choice": "choices",
    "guided_regex": "regex",
    "guided_json": "json_schema",
    "response_format": "json_schema",
}
SIMILAR = 0.85  # of difflib's ratio, from which a field may be a misspelt option

Prompt = TypeVar("Prompt")


@dataclass
class Item(Generic[Prompt]):
    """A prompt with its options and the fields to pass on, or why it cannot be written."""

    prompt: Prompt | None  # None where there is a problem
    options: GenerateOptions
    fields: dict[str, Any]
    problem: str | None = None
    dropped_turns: int = 0  # of a conversation, that do not fit the context


class Warnings:
    """A report of each problem with the fields of records, told once, at the first place where it occurs."""

    def __init__(self, report: Report) -> None:
        self.report, self.told = report, set[str]()

    def tell(self, place: str, what: str) -> None:
        if what not in self.told:
            self.told.add(what)
            self.report.warning(f"{place}: {what}")


def read_items(
    lines: Iterable[bytes],
    defaults: GenerateOptions,
    parse: Callable[[str, str], tuple[Prompt, dict[str, Any]]],
    report: Report,
) -> Iterator[Item[Prompt]]:
    """Yield an item for each record, whose prompt `parse` takes out of a line; a bad line becomes an item with a
    problem. The report is told of fields that look like options and are not taken."""
    warnings = Warnings(report)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"stdin:{number}"
        fields: dict[str, Any] = {}
        try:
            prompt, record = parse(decode_line(line, place), place)
            fields, given = split_options(record, place, warnings)
            yield Item(prompt, options_of(defaults, given, place), fields)
        except GptcliError as error:
            fields = fields or salvage(line)
            yield Item(None, defaults, fields, problem="; ".join(error.problems))


def split_options(record: dict[str, Any], place: str, warnings: Warnings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a record to pass on, and its options by name; DataError for an option that there is not."""
    nested = record.get("options")
    if isinstance(nested, dict):
        for name in nested:
            if name not in OPTION_NAMES:
                raise DataError(f"{place}: options: no option {escape(name)!r}{_meant(name)}")
        return {name: value for name, value in record.items() if name != "options"}, nested
    others = set(record) - OPTION_NAMES - NO_DATA
    taken = OPTION_NAMES - PLAIN_WORDS if others else OPTION_NAMES
    for name in others:
        near = _option_near(name)
        if near is not None and (name in ELSEWHERE or _squeezed(name) == _squeezed(near)):
            raise DataError(f'{place}: no option {escape(name)!r}; write {near}, or put options under "options"')
        if near is not None:
            warnings.tell(place, f"field {escape(name)!r} is passed on; the option is {near}")
    if passed := sorted(name for name in record if name in OPTION_NAMES - taken):
        words, own = ", ".join(passed), escape(repr(min(others)))
        warnings.tell(
            place, f'{words}: passed on as data, like {own} beside it; options of such a record go under "options"'
        )
    fields = {name: value for name, value in record.items() if name not in taken}
    return fields, {name: value for name, value in record.items() if name in taken}


def _squeezed(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _option_near(name: str) -> str | None:
    """Return the option that a name is probably meant for."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    squeezed = {_squeezed(option): option for option in OPTION_NAMES}
    found = difflib.get_close_matches(_squeezed(name), squeezed, 1, SIMILAR)
    return squeezed[found[0]] if found else None


def _meant(name: str) -> str:
    near = _option_near(name)
    return f"; did you mean {near}?" if near else f"; there are {', '.join(sorted(OPTION_NAMES))}"


def salvage(line: bytes) -> dict[str, Any]:
    """Return the id of a record that is wrong otherwise, so that its error can be told from the others."""
    try:
        record = json.loads(line)
        return {"id": record["id"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def options_of(defaults: GenerateOptions, given: dict[str, Any], place: str) -> GenerateOptions:
    """Return the defaults with options given as JSON on top; DataError for a wrong type or value."""
    try:
        chosen = dataclasses.replace(defaults, **{name: _converted(name, value) for name, value in given.items()})
        automaton_of(chosen)
        return chosen
    except ConfigError as error:
        raise DataError(*(f"{place}: {escape(problem, 400)}" for problem in error.problems)) from None


def _converted(name: str, value: Any) -> Any:
    """Return an option's value in the form of GenerateOptions, which checks it."""
    match name, value:
        case "logit_bias", _:  # as OpenAI's API has it: {"ID": bias}
            try:
                return tuple((float(int(index)), float(bias)) for index, bias in value.items())
            except (AttributeError, TypeError, ValueError, OverflowError):
                raise ConfigError(f'logit_bias: want {{"ID": BIAS}}, got {value!r}') from None
        case "stop" | "choices", str():
            return (value,)
        case "stop" | "choices", list():
            return tuple(value)
        case "json_schema", dict() | bool():  # the schema itself, not its text
            return json.dumps(value)
        case "logprobs" | "prompt_logprobs", bool():  # true is 1
            return int(value)
    return value


def in_order(
    engine: Engine,
    items: Iterable[Item[Prompt]],
    requests: Callable[[Item[Prompt], Prompt], Iterable[Request]],
    ready: Ready,
) -> Iterator[tuple[Item[Prompt], Completion | None]]:
    """Yield every item with each completion of its requests, in order, written as the engine has room; an item with a
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


def answered(fields: dict[str, Any], answer: dict[str, Any], warnings: Warnings) -> dict[str, Any]:
    """Return a record with its answer; a field of its own that has a name of the answer's becomes input_NAME."""
    clashing = sorted(set(fields) & set(answer))
    if not clashing:
        return {**fields, **answer}
    names = {name: f"input_{name}" for name in clashing}
    warnings.tell(
        "stdin", f"fields {', '.join(clashing)} are the answer's; yours come back as {', '.join(names.values())}"
    )
    return {names.get(name, name): value for name, value in fields.items()} | answer


def completion_record(completion: Completion, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a completion as JSON."""
    options = completion.request.options
    record: dict[str, Any] = {"text": completion.text}
    if options.n > 1:
        record["sample"] = completion.request.sample
    record |= {
        "finish_reason": completion.finish_reason,
        **({} if completion.error is None else {"error": str(completion.error)}),
        "prompt_tokens": len(completion.request.prompt),
        "tokens": len(completion.ids),
        **({} if completion.watermarked is None else {"watermarked_tokens": completion.watermarked}),
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
    """Return tokens as JSON, each with the likeliest at its place where there are such."""
    records = [_token_record(tokenizer, index, value) for index, value in zip(ids, logprobs, strict=False)]
    for record, likeliest in zip(records, alternatives, strict=False):
        record["top"] = [_token_record(tokenizer, index, value) for index, value in likeliest]
    return records


def _token_record(tokenizer: Tokenizer, index: int, logprob: float | None) -> dict[str, Any]:
    return {"id": index, "token": tokenizer.decode([index]), "logprob": logprob}
