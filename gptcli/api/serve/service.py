"""A trained model as a service: prompts and conversations as requests to the engine, labels, scores, tokens.

What touches the model runs in the worker's thread; this is the module that imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from gptcli.api.chat import Fitted, Speaker
from gptcli.api.classify import Classifier
from gptcli.api.generate import Writer
from gptcli.api.sampling_defaults import with_makers_defaults
from gptcli.api.serve.fields import Ask, pattern_field
from gptcli.api.serve.problems import Problem, invalid
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.report import Report
from gptcli.config.generate import GenerateOptions
from gptcli.data.conversation import ASSISTANT, SYSTEM, Message
from gptcli.evaluate.perplexity import TextScore, score_windows
from gptcli.generate.constrain import Constraint
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import read_config, read_metadata
from gptcli.train.weights import weights_sha256

T = TypeVar("T")

PART_TOKENS = 2048  # of texts to label between two steps of the engine


class Prepared(NamedTuple):
    """The texts that the engine is to write for an HTTP request."""

    requests: list[Request]
    texts: list[str]  # the prompts
    dropped_turns: int = 0  # of a conversation, which did not fit


class Service:
    """A loaded model and what it can be asked."""

    def __init__(self, run: str, given: dict[str, Any], how: dict[str, Any], report: Report) -> None:
        """Load the run; `given` are options of drawing for requests that name none, before those of the model's makers,
        and `how` holds batch_size, quantize and where the model computes, as for Writer."""
        directory = find_checkpoint(run)
        metadata = read_metadata(directory)
        self.defaults, self.labels = with_makers_defaults(run, given, report), metadata.labels
        self.seed: int | None = given.get("seed")  # of requests that name none; None: each a fresh one
        self.speaker: Speaker | None = None
        self.classifier: Classifier | None = None
        if metadata.labels:
            self.task = "classify"
            place = {name: value for name, value in how.items() if name in ("device", "dtype", "threads")}
            self.classifier = Classifier(run, **place)
            member = self.classifier.ensemble.members[0]
            self.engine = Engine(member.model, member.tokenizer, member.runtime, slots=1)
        elif metadata.conversation is not None:
            self.task = "chat"
            self.speaker = Speaker(run, **how)
            self.engine = self.speaker.engine
        else:
            self.task = "text"
            self.engine = Writer(run, **how).engine
        self.tokenizer = self.engine.tokenizer
        self.context_length = self.engine.context_length
        self.engine.prefixes.grow(self.context_length)  # now, so that no request waits for it
        with torch.device("meta"):  # the engine's own has its matrices packed
            self.parameters = GPT(read_config(directory), labels=len(self.labels)).num_parameters()
        self.created = int((directory / "config.json").stat().st_mtime)
        adapter = metadata.adapter
        self.fingerprint = (weights_sha256(directory) if adapter is None else adapter.base_sha256)[:12]
        self.longest_token = max(map(len, self.tokenizer.token_bytes))

    def requests(self, ask: Ask, owner: str) -> Prepared:
        """Return the engine's requests, prompt by prompt. Touches no model, so that any thread may do it."""
        if ask.messages:
            return self._chat_requests(ask, owner)
        requests, texts, constraint = [], [], self._constraint(ask.options)
        for prompt in ask.prompts:
            ids = self._prompt_ids(prompt)
            texts.append(prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt)))
            ids = self._fit(ids, ask.options)
            for sample in range(ask.n):
                requests.append(
                    Request(ids, ask.options, sample, self.tokenizer.stop_ids, owner=owner, constraint=constraint)
                )
        return Prepared(requests, texts)

    def _chat_requests(self, ask: Ask, owner: str) -> Prepared:
        if self.speaker is None:
            raise invalid(None, "this model was not tuned to converse; ask /v1/completions", "unsupported_route")
        messages, goes_on = list(ask.messages), ""
        if messages[-1].role == ASSISTANT:
            goes_on = messages.pop().content
        fitted = self._fit_chat(messages, ask.options)
        ids = self._fit([*fitted.ids, *self._encode(goes_on, "messages")], ask.options)
        made = [self.speaker.request(ids, ask.options, sample) for sample in range(ask.n)]
        constraint = self._constraint(ask.options)
        requests = [dataclasses.replace(request, owner=owner, constraint=constraint) for request in made]
        return Prepared(requests, [""], fitted.dropped_turns)

    def _constraint(self, options: GenerateOptions) -> Constraint | None:
        """Make what holds a text to its pattern or schema, which can take seconds."""
        try:
            return self.engine.constraints.of(options)
        except ConfigError as error:
            raise invalid(pattern_field(options), str(error), "invalid_schema") from None

    def _fit_chat(self, messages: list[Message], options: GenerateOptions) -> Fitted:
        """Return the ids of a conversation, without the oldest turns that cannot fit."""
        if self.speaker is None:
            raise invalid(None, "this model was not tuned to converse", "unsupported_route")
        begin, room = int(messages[0].role == SYSTEM), self.context_length * self.longest_token
        turns = 0  # that are too long for the context whatever their tokens, so that they need not be encoded
        held = sum(len(message.content) for message in messages)
        while held > room and len(messages) > begin + 2:
            held -= sum(len(message.content) for message in messages[begin : begin + 2])
            del messages[begin : begin + 2]
            turns += 1
        for message in messages:
            self._check_length(message.content, "messages")
        try:
            fitted = self.speaker.fit(messages, options)
        except DataError as error:
            raise invalid("messages", str(error), "context_length_exceeded") from None
        return Fitted(fitted.ids, fitted.dropped_turns + turns)

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            if any(index >= self.tokenizer.vocab_size for index in prompt):
                raise invalid("prompt", f"token ids must be below {self.tokenizer.vocab_size}")
            ids = list(prompt)
            return ids[len(self.engine.bos_ids) :] if ids[: len(self.engine.bos_ids)] == self.engine.bos_ids else ids
        self._check_length(prompt, "prompt")
        return self._encode(prompt, "prompt")

    def _check_length(self, text: str, field: str) -> None:
        """Refuse, before it is encoded, what cannot fit."""
        size = len(text.encode())
        if size > self.context_length * self.longest_token:
            message = f"{size:,} bytes cannot fit a context of {self.context_length} tokens; shorten it"
            raise invalid(field, message, "context_length_exceeded")

    def _encode(self, text: str, field: str) -> list[int]:
        with refusing(field):
            return self.tokenizer.encode_batch([text])[0]  # which lets other threads go on, as `encode` does not

    def _fit(self, ids: list[int], options: GenerateOptions) -> list[int]:
        try:
            return self.engine.fit(ids, options)
        except DataError as error:
            code = "context_length_exceeded" if "context" in str(error) else "invalid_value"
            field = next((name for name in ("logit_bias", "temperature") if str(error).startswith(name)), "prompt")
            raise invalid(field, str(error), code) from None

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self._encode(text, "prompt")

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id."""
        return [self.tokenizer.decode([index]) for index in ids]

    def text_of(self, ids: Any) -> str:
        """Return the text of a list of ids; Problem for anything else."""
        size = self.tokenizer.vocab_size
        whole = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids)
        if not whole or not all(0 <= index < size for index in ids):
            raise invalid("tokens", f"must be a list of token ids below {size}")
        return self.tokenizer.decode(ids)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation up to the answer to its last message."""
        return self._fit_chat(list(messages), dataclasses.replace(self.defaults, max_tokens=1)).ids

    def classify(self, texts: Sequence[str]) -> Generator[None, None, list[list[float]]]:
        """Return the work that gives the probabilities of the labels of each text, a few texts at a time.

        Like `score`, it encodes the texts here and now, in any thread, and leaves to the engine's what needs the model.
        """
        if self.classifier is None:
            raise Problem(404, "not_found", "this model names no labels; make a classifier with gptcli finetune")
        ensemble = self.classifier.ensemble
        with refusing("input"):
            encoded = ensemble.encode(texts)

        def work() -> Generator[None, None, list[list[float]]]:
            found: list[list[float]] = []
            for some in batched(encoded, max(1, PART_TOKENS // self.context_length)):
                found += ensemble.probabilities_of_ids(some).tolist()
                yield
            return found

        return work()

    def score(self, texts: Sequence[str]) -> Generator[None, None, list[dict[str, Any]]]:
        """Return the work that gives log-probability, tokens and bits per byte of each text, as `gptcli score` does,
        window by window."""
        with refusing("input"):
            return self._score(self.tokenizer.encode_batch(texts))

    def _score(self, encoded: Sequence[list[int]]) -> Generator[None, None, list[dict[str, Any]]]:
        found: list[dict[str, Any]] = []
        for ids in encoded:
            whole = TextScore(0.0, 0, 0)
            for _, part in score_windows(self.engine.model, self.tokenizer, [ids], self.engine.runtime):
                whole += part
                yield
            bits = whole.bits_per_byte if whole.bytes else None
            found.append(
                {"logprob": 0.0 - whole.nats, "tokens": whole.tokens, "bytes": whole.bytes, "bits_per_byte": bits}
            )
        return found


@contextlib.contextmanager
def refusing(field: str) -> Iterator[None]:
    """Refuse a field whose text has a byte that no token stands for."""
    try:
        yield
    except DataError as error:
        raise invalid(field, str(error)) from None


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def model_name(run: str) -> str:
    """Return the name under which a run's model is served: the last part of its path."""
    return Path(run).resolve().name
