"""The chat template of an imported model as a form of conversation: the ids that transformers makes with it.

The template is a program in Jinja, kept as it came and run in jinja2's sandbox (the extra `chat`); text that spells a
control token is still text, which transformers would turn into the token.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.data.conversation import ASSISTANT, USER, Conversation, Message
from gptcli.data.tokenizer import Tokenizer

_GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # characters that Unicode keeps free for such use
MAX_RENDERED = 1 << 24  # characters


@dataclass(frozen=True)
class Template:
    """A Jinja template, and the names of tokens (`bos_token`, ...) that it may use."""

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)

    @property
    def specials(self) -> tuple[str, ...]:
        """Return no control tokens: a tokenizer with a template has them already."""
        return ()

    def as_json(self) -> dict[str, Any]:
        return {"template": self.source, "tokens": dict(self.tokens)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Template:
        """Read a template from its JSON; ValueError where the document has another form."""
        source, tokens = document.get("template"), document.get("tokens", {})
        if not isinstance(source, str) or not isinstance(tokens, dict):
            raise ValueError("conversation: want a template and its tokens")
        if not all(isinstance(name, str) for name in tokens.values()):
            raise ValueError("conversation.tokens must be names of tokens")
        return cls(source, tokens)

    def missing(self, _tokenizer: Tokenizer) -> list[str]:
        """Return the control tokens that the tokenizer lacks: none, since a template does not declare any."""
        return []

    def first(self, _tokenizer: Tokenizer) -> list[int]:
        """Return what a window begins with before the conversation: the template says all of it."""
        return []

    def end_id(self, tokenizer: Tokenizer) -> int | None:
        """Return the token that ends the model's turn, if it has one."""
        return tokenizer.end

    def stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Return every token that ends what the model writes."""
        return frozenset(tokenizer.ends)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Return ids after which the model writes the assistant's next turn."""
        guard, guarded = _guarded(messages, tokenizer)
        return _ids(self._render(guarded, answer=True), [], guard, tokenizer)[0]

    def example(self, messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """Encode a conversation as (ids, loss mask): the assistant's words and the token that ends them are learnt.

        Raises DataError where the template renders an earlier turn differently once later ones follow: then the
        assistant's words cannot be located.
        """
        guard, guarded = _guarded(messages, tokenizer)
        whole = self._render(guarded, answer=False)
        spans = []
        for number, message in enumerate(messages):
            if message.role != ASSISTANT:
                continue
            before = self._render(guarded[:number], answer=True)
            turn = self._render(guarded[: number + 1], answer=False)
            end = _end_of_turn(turn, len(before), tokenizer)
            if not turn.startswith(before) or not whole.startswith(turn[:end]):
                raise DataError("the chat template shows earlier turns otherwise beside later ones, so it cannot be "
                                "told what is to be learnt; give each answer a row of its own")  # fmt: skip
            spans.append((len(before), end))
        return _ids(whole, spans, guard, tokenizer)

    def check(self) -> None:
        """Raise DataError unless the template renders a question and its answer."""
        self._render([Message(USER, "a"), Message(ASSISTANT, "b")], answer=True)

    def _render(self, messages: Sequence[Message], *, answer: bool) -> str:
        import_error = "the chat template of this model needs the package jinja2; pip install 'gptcli[chat]'"
        try:
            import jinja2
        except ImportError:
            raise ConfigError(import_error) from None
        try:
            text: str = _compiled(self.source).render(
                messages=[message._asdict() for message in messages],
                add_generation_prompt=answer,
                tools=None,
                documents=None,
                **self.tokens,
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template refuses the conversation: {escape(str(error))}") from None
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            raise DataError(f"the chat template fails: {escape(str(error))}") from None
        if len(text) > MAX_RENDERED:
            raise DataError(f"the chat template makes {len(text)} characters of the conversation; shorten it")
        return text


Form = Conversation | Template  # what a model takes a conversation in


def form_of(document: Any) -> Form:
    """Return the form that a checkpoint states; ValueError where it is none."""
    if isinstance(document, dict) and "template" in document:
        return Template.from_json(document)
    return Conversation.from_json(document)


@functools.lru_cache(8)
def _compiled(source: str) -> Any:
    """Return the template with what transformers lets it use; jinja2.TemplateError where it is none."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}, with which some templates mark the assistant's words: its content alone."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **how: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **how)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def check_template(source: str) -> str | None:
    """Return why a template cannot be used, or None: it must take a question and its answer. ConfigError without
    jinja2."""
    try:
        Template(source, dict.fromkeys(("bos_token", "eos_token"), "")).check()
    except DataError as error:
        return str(error)
    return None


def _guarded(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[str, list[Message]]:
    """Return the messages with a character put into every control token that they spell, and that character; "" and the
    messages themselves where they spell none."""
    controls = _controls(tokenizer)
    if not any(controls.search(message.content) for message in messages):
        return "", list(messages)
    everything = "".join(message.content for message in messages)
    guard = next((guard for guard in _GUARDS if guard not in everything), None)
    if guard is None:
        raise DataError("the conversation spells a control token and has every character that could hide it")
    return guard, [
        message._replace(content=controls.sub(lambda found: found[0][0] + guard + found[0][1:], message.content))
        for message in messages
    ]


def _controls(tokenizer: Tokenizer) -> re.Pattern[str]:
    longest_first = sorted(tokenizer.specials, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _end_of_turn(turn: str, start: int, tokenizer: Tokenizer) -> int:
    """Find the end of the assistant's turn that begins at `start`: after the first token that ends a text."""
    ends = [re.escape(name) for name, index in tokenizer.specials.items() if index in tokenizer.ends]
    found = re.search("|".join(ends), turn[start:]) if ends else None
    return start + found.end() if found else len(turn)


def _ids(text: str, spans: Sequence[tuple[int, int]], guard: str, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Return ids of a rendered text, and whether each lies in one of the spans."""
    if not guard:
        ids, offsets = tokenizer.encode_rendered(text)
        return ids, [any(first <= start and end <= last for first, last in spans) for start, end in offsets]
    ids, learnt = [], []
    controls = list(_controls(tokenizer).finditer(text))
    places = {0, len(text), *(place for span in spans for place in span)}
    places |= {place for found in controls for place in found.span()}
    cuts = sorted(places)
    for start, end in itertools.pairwise(cuts):
        piece = text[start:end]
        control = tokenizer.specials.get(piece)
        new = tokenizer.encode(piece.replace(guard, "")) if control is None else [control]
        ids += new
        learnt += [any(first <= start and end <= last for first, last in spans)] * len(new)
    return ids, learnt
