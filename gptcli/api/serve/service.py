"""A trained model as a service: prompts and conversations as requests to the engine, labels, scores, tokens.

All of it runs in the worker's thread; this is the module that imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gptcli.api.chat import Speaker
from gptcli.api.classify import Classifier
from gptcli.api.generate import Writer
from gptcli.api.serve.fields import Ask
from gptcli.api.serve.problems import Problem, invalid
from gptcli.base.errors import ConfigError, DataError
from gptcli.config.generate import GenerateOptions
from gptcli.data.conversation import ASSISTANT
from gptcli.evaluate.perplexity import score_documents
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT
from gptcli.train.metadata import read_config, read_metadata
from gptcli.train.run_directory import find_checkpoint
from gptcli.train.weights import weights_sha256


class Service:
    """A loaded model and what it can be asked."""

    def __init__(self, run: str, defaults: GenerateOptions, how: dict[str, Any]) -> None:
        """Load the run; `how` holds batch_size, quantize and where the model computes, as for Writer."""
        directory = find_checkpoint(run)
        metadata = read_metadata(directory)
        self.defaults, self.labels = defaults, metadata.labels
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
        with torch.device("meta"):  # the engine's own has its matrices packed
            self.parameters = GPT(read_config(directory), labels=len(self.labels)).num_parameters()
        self.created = int((directory / "config.json").stat().st_mtime)
        adapter = metadata.adapter
        self.fingerprint = (weights_sha256(directory) if adapter is None else adapter.base_sha256)[:12]
        self.longest_token = max(map(len, self.tokenizer.token_bytes))

    def requests(self, ask: Ask, owner: str) -> tuple[list[Request], list[str], int]:
        """Return the engine's requests, prompt by prompt, each prompt as text, and how many turns did not fit."""
        if ask.messages:
            return self._chat_requests(ask, owner)
        requests, texts = [], []
        for prompt in ask.prompts:
            ids = self._prompt_ids(prompt)
            texts.append(prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt)))
            ids = self._fit(ids, ask.options)
            requests += [Request(ids, ask.options, sample, owner=owner) for sample in range(ask.n)]
        return requests, texts, 0

    def _chat_requests(self, ask: Ask, owner: str) -> tuple[list[Request], list[str], int]:
        if self.speaker is None:
            raise invalid(None, "this model was not tuned to converse; ask /v1/completions", "unsupported_route")
        messages, goes_on = list(ask.messages), ""
        if messages[-1].role == ASSISTANT:
            goes_on = messages.pop().content
        try:
            fitted = self.speaker.fit(messages, ask.options)
        except DataError as error:
            raise invalid("messages", str(error), "context_length_exceeded") from None
        ids = self._fit([*fitted.ids, *self.tokenizer.encode(goes_on)], ask.options)
        made = (self.speaker.request(ids, ask.options, sample) for sample in range(ask.n))
        requests = [dataclasses.replace(request, owner=owner) for request in made]
        return requests, [""], fitted.dropped_turns

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str):
            if any(index >= self.tokenizer.vocab_size for index in prompt):
                raise invalid("prompt", f"token ids must be below {self.tokenizer.vocab_size}")
            ids = list(prompt)
            return ids[len(self.engine.first) :] if ids[: len(self.engine.first)] == self.engine.first else ids
        if len(prompt.encode()) > self.context_length * self.longest_token:
            raise invalid(
                "prompt",
                f"{len(prompt.encode()):,} bytes cannot fit a context of {self.context_length} tokens; shorten it",
                "context_length_exceeded",
            )
        return self.tokenizer.encode(prompt)

    def _fit(self, ids: list[int], options: GenerateOptions) -> list[int]:
        try:
            return self.engine.fit(ids, options)
        except DataError as error:
            code = "context_length_exceeded" if "context" in str(error) else "invalid_value"
            field = next((name for name in ("logit_bias", "temperature") if str(error).startswith(name)), "prompt")
            raise invalid(field, str(error), code) from None
        except ConfigError as error:
            raise invalid(None, str(error), "invalid_schema") from None

    def classify(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the probabilities of the labels of each text."""
        if self.classifier is None:
            raise Problem(404, "not_found", "this model names no labels; make a classifier with gptcli finetune")
        return self.classifier.ensemble.probabilities(texts)[0].tolist()

    def score(self, text: str) -> dict[str, Any]:
        """Return log-probability, tokens and bits per byte of a text, as `gptcli score` does."""
        ids = self.tokenizer.encode(text)
        (found,) = score_documents(self.engine.model, self.tokenizer, [ids], self.engine.runtime)
        bits = found.bits_per_byte if found.bytes else None
        return {"logprob": -found.nats, "tokens": found.tokens, "bytes": found.bytes, "bits_per_byte": bits}

    def chat_ids(self, ask_messages: Sequence[Any]) -> list[int]:
        """Return the ids of a conversation up to the answer to its last message."""
        if self.speaker is None:
            raise invalid(None, "this model was not tuned to converse", "unsupported_route")
        options = dataclasses.replace(self.defaults, max_tokens=1)
        return self.speaker.fit(list(ask_messages), options).ids


def model_name(run: str) -> str:
    """Return the name under which a run's model is served: the last part of its path."""
    return Path(run).resolve().name
