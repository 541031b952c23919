"""Bodies of /v1/completions and /v1/chat/completions -> checked options and prompts."""

from __future__ import annotations

import dataclasses
import json
import secrets
from dataclasses import dataclass
from typing import Any

from gptcli.api.serve.body import Fields
from gptcli.api.serve.problems import Problem, invalid
from gptcli.base.errors import ConfigError
from gptcli.config.generate import GenerateOptions
from gptcli.data.conversation import ASSISTANT, SYSTEM, USER, Message

MAX_TEXTS, MAX_MESSAGES, MAX_LOGPROBS = 256, 1000, 20
MAX_STOPS, MAX_STOP_LENGTH, MAX_CHOICES = 16, 1024, 256
ANY_JSON = '{"type": "object"}'


@dataclass(frozen=True)
class Ask:
    """The wishes of a request, whatever its route."""

    options: GenerateOptions
    n: int
    stream: bool
    include_usage: bool
    logprobs: int | None  # the likeliest asked for at each place beside the token itself; None: no log-probabilities
    model: str | None
    seed: int
    echo: bool = False
    prompts: tuple[str | tuple[int, ...], ...] = ()  # of completions
    messages: tuple[Message, ...] = ()  # of chat; the last may be the assistant's, to be continued


def read_completion(document: dict[str, Any], defaults: GenerateOptions, seed: int | None = None) -> Ask:
    """Check the body of /v1/completions; `seed` is for one that names none, a fresh one where it is None."""
    fields = Fields(document)
    prompts = _prompts(fields.take("prompt"))
    echo = fields.flag("echo")
    logprobs = fields.number("logprobs", 0, MAX_LOGPROBS, whole=True)
    truncate = fields.choice("truncate", ("error", "left"))
    n = fields.number("n", 1, MAX_TEXTS, whole=True) or 1
    if fields.number("best_of", 1, MAX_TEXTS, whole=True) not in (None, n):
        raise invalid("best_of", f"only {n}, as n is, is supported; leave it out", "unsupported_parameter")
    if fields.text("suffix"):
        raise invalid("suffix", "is not supported; leave it out", "unsupported_parameter")
    given = _drawing(fields, least_tokens=0)
    if truncate:
        given["truncate"] = truncate
    if logprobs is not None:
        given["logprobs"] = _engine_logprobs(logprobs)
        if echo:
            given["prompt_logprobs"] = _engine_logprobs(logprobs)
    if given.get("max_tokens") == 0:
        if not echo:
            raise invalid("max_tokens", "must be at least 1; 0 is for echo")
        given.setdefault("prompt_logprobs", 1)
    if len(prompts) * n > MAX_TEXTS:
        raise invalid("n", f"{len(prompts)} prompts times {n} are more than {MAX_TEXTS} texts")
    return _ask(fields, defaults, given, n, logprobs, seed, echo=echo, prompts=prompts)


def read_chat(document: dict[str, Any], defaults: GenerateOptions, seed: int | None = None) -> Ask:
    """Check the body of /v1/chat/completions; `seed` as for read_completion."""
    fields = Fields(document)
    messages = read_messages(fields.take("messages"))
    wants = fields.flag("logprobs")
    top = fields.number("top_logprobs", 0, MAX_LOGPROBS, whole=True)
    if top and not wants:
        raise invalid("top_logprobs", "needs logprobs: true")
    n = fields.number("n", 1, MAX_TEXTS, whole=True) or 1
    given = _drawing(fields, least_tokens=1)
    if wants:
        given["logprobs"] = _engine_logprobs(top or 0)
    given.setdefault("max_tokens", 1 << 20)  # what fits the context
    return _ask(fields, defaults, given, n, (top or 0) if wants else None, seed, messages=messages)


def _ask(
    fields: Fields,
    defaults: GenerateOptions,
    given: dict[str, Any],
    n: int,
    logprobs: int | None,
    default_seed: int | None,
    **more: Any,
) -> Ask:
    stream, model = fields.flag("stream"), fields.text("model")
    extra = fields.take("stream_options")
    include_usage = False
    if extra is not None:
        if not isinstance(extra, dict) or not stream:
            raise invalid("stream_options", "must be an object, and stream true")
        inner = Fields(extra)
        include_usage = inner.flag("include_usage")
        inner.take("include_obfuscation")
        inner.rest()
    seed = fields.number("seed", -(2**63), 2**63 - 1, whole=True)
    seed = default_seed if seed is None else seed
    seed = secrets.randbits(53) if seed is None else seed % 2**63
    fields.rest()
    try:
        options = dataclasses.replace(defaults, **given, seed=seed)
    except ConfigError as error:
        name, _, message = error.problems[0].partition(": ")
        raise invalid(name, message) from None
    return Ask(options, n, stream, include_usage, logprobs, model, seed, **more)


def _drawing(fields: Fields, *, least_tokens: int) -> dict[str, Any]:
    """Return the fields that say how text is drawn, as GenerateOptions has them."""
    most = fields.number("max_completion_tokens", least_tokens, 2**31, whole=True)
    older = fields.number("max_tokens", least_tokens, 2**31, whole=True)
    numbers = {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.number("top_k", 1, 2**31, whole=True),
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 100),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "min_tokens": fields.number("min_tokens", 0, 2**31, whole=True),
        "lookup": fields.number("lookup", 0, 64, whole=True),
        "max_tokens": older if most is None else most,
    }
    given = {name: value for name, value in numbers.items() if value is not None}
    given |= {name: float(given[name]) for name in given.keys() & _FLOATS}
    if stops := fields.texts("stop", MAX_STOPS, MAX_STOP_LENGTH):
        given["stop"] = stops
    if fields.flag("ignore_eos"):
        given["stop_at_eos"] = False
    if (bias := fields.take("logit_bias")) is not None:
        given["logit_bias"] = _bias(bias)
    if (choices := fields.texts("choices", MAX_CHOICES, 1 << 16)) != ():
        given["choices"] = choices
    if (regex := fields.text("regex")) is not None:
        given["regex"] = regex
    if (schema := _schema(fields.take("response_format"))) is not None:
        given["json_schema"] = schema
    return given


_FLOATS = frozenset("temperature top_p min_p repetition_penalty presence_penalty frequency_penalty".split())


def _engine_logprobs(likeliest: int) -> int:
    """Return the engine's `logprobs`: 1 for the token alone; from 2 on, the likeliest too."""
    return 1 if likeliest == 0 else max(2, likeliest)


def _bias(value: Any) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, dict):
        raise invalid("logit_bias", "must be an object of token ids and biases")
    for name, bias in value.items():
        is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not name.isdecimal() or len(name) > 9 or not is_number or not -100 <= bias <= 100:
            raise invalid("logit_bias", "must be an object of token ids and biases from -100 to 100")
    return tuple((float(name), float(bias)) for name, bias in value.items())


def _schema(value: Any) -> str | None:
    if value is None:
        return None
    fields = Fields(value) if isinstance(value, dict) else Fields({})
    kind = fields.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise invalid("response_format", "want an object with type text, json_object or json_schema")
    inner = fields.take("json_schema")
    fields.rest()
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_JSON
    if not isinstance(inner, dict) or not isinstance(inner.get("schema"), (dict, bool)):
        raise invalid("response_format", 'json_schema wants {"name": ..., "schema": {...}}')
    return json.dumps(inner["schema"])


def pattern_field(options: GenerateOptions) -> str:
    """Return the field that bound a text."""
    return "choices" if options.choices else "response_format" if options.regex is None else "regex"


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """Return a string, strings, ids or lists of ids."""
    if value is None:
        raise invalid("prompt", "missing; give a string")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise invalid("prompt", "must be a string, a list of strings, a list of token ids or a list of those")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return (_ids(value),)
    if len(value) > MAX_TEXTS:
        raise invalid("prompt", f"{len(value)} prompts, more than {MAX_TEXTS}")
    if all(isinstance(item, str) for item in value):
        return tuple(value)
    if all(isinstance(item, list) for item in value):
        return tuple(_ids(item) for item in value)
    raise invalid("prompt", "must be a string, a list of strings, a list of token ids or a list of those")


def _ids(value: list[Any]) -> tuple[int, ...]:
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31 for item in value):
        raise invalid("prompt", "token ids must be integers from 0")
    return tuple(value)


def read_messages(value: Any) -> tuple[Message, ...]:
    """Return messages in the order system, user, assistant, user, ...

    Neighbours of one role are joined by a blank line, `developer` is `system`, parts of text are joined. The last is
    the user's, or the assistant's to go on with."""
    if not isinstance(value, list) or not value:
        raise invalid("messages", "must be a list of messages, and not empty")
    if len(value) > MAX_MESSAGES:
        raise invalid("messages", f"{len(value)} messages, more than {MAX_MESSAGES}")
    joined: list[Message] = []
    for number, item in enumerate(value):
        message = _message(item, f"messages[{number}]")
        if joined and joined[-1].role == message.role:
            joined[-1] = Message(message.role, f"{joined[-1].content}\n\n{message.content}")
        else:
            joined.append(message)
    turns = joined[1:] if joined[0].role == SYSTEM else joined
    for number, message in enumerate(turns):
        if message.role == SYSTEM:
            raise invalid("messages", "a system message must come first")
        if message.role != (USER, ASSISTANT)[number % 2]:
            raise invalid("messages", "after a system message, the first message must be the user's")
    if not turns:
        raise invalid("messages", "there is no message of the user")
    return tuple(joined)


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise invalid(place, "must be an object with role and content")
    role = "system" if item.get("role") == "developer" else item.get("role")
    if role in ("tool", "function") or item.get("tool_calls"):
        raise Problem(400, "unsupported_parameter", f"{place}: tools are not supported", param="messages")
    if role not in (SYSTEM, USER, ASSISTANT):
        raise invalid(f"{place}.role", "must be system, developer, user or assistant")
    content = item.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal") or not isinstance(part.get(kind), str):
                raise invalid(f"{place}.content", f"only parts of text are supported, not {str(kind)[:40]!r}")
            parts.append(part[kind])
        content = "".join(parts)
    if not isinstance(content, str):
        raise invalid(f"{place}.content", "must be text")
    if not content.strip() and role == USER:
        raise invalid(f"{place}.content", "is empty")
    return Message(role, content)
