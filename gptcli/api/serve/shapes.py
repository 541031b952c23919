"""Answers in the shapes of OpenAI's API. Pure functions of what was written."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gptcli.api.serve.fields import Ask

if TYPE_CHECKING:
    from gptcli.data.tokenizer import Tokenizer
    from gptcli.generate.engine import Completion


@dataclass
class Head:
    """The fields that all chunks of an answer share."""

    chat: bool
    model: str
    fingerprint: str
    ask: Ask
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    def wrap(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return an answer, or a chunk of one."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if self.ask.stream else "chat.completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "seed": self.ask.seed,
            **more,
        }

    def chunk(
        self, index: int, text: str, *, logprobs: Any = None, finish: str | None = None, first: bool = False
    ) -> Any:
        """Return a chunk of one choice; `first` names the role of a chat."""
        choice: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant", "content": ""} if first else {}
            choice["delta"] = delta | ({"content": text} if text else {})
        else:
            choice["text"] = text
        return self.wrap([choice], **({"usage": None} if self.ask.include_usage else {}))

    def whole(self, index: int, text: str, finish: str, logprobs: Any) -> dict[str, Any]:
        """Return a finished choice."""
        choice: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return choice


def usage(completions: Sequence[Completion], n: int) -> dict[str, Any]:
    """Count tokens: a prompt once for all of its `n` samples."""
    prompt = sum(len(completion.request.prompt) for completion in completions[::n])
    written = sum(len(completion.ids) for completion in completions)
    cached = sum(completion.cached_tokens for completion in completions[::n])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finish_of(reason: str) -> str:
    """Return OpenAI's word for why a text ended."""
    return "length" if reason == "timeout" else reason


class TokenFacts:
    """The log-probabilities of a completion's tokens, taken piece by piece as its text comes."""

    def __init__(self, tokenizer: Tokenizer, completion: Completion, ask: Ask, *, chat: bool, prompt_text: str) -> None:
        self.tokenizer, self.completion, self.chat = tokenizer, completion, chat
        self.likeliest = ask.logprobs or 0
        self.done = 0  # tokens told
        self.written = 0  # bytes of those
        self.prefix = tokenizer.prefix if completion.request.first is not None else b""  # which the text leaves out
        self.offset = len(prompt_text)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def name(self, index: int) -> str:
        """Return the text of a token, or its bytes where they are no text by themselves."""
        content = self.tokenizer.token_bytes[index]
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def prompt(self) -> dict[str, Any]:
        """Return the entries of the prompt's tokens, for echo."""
        made = self.empty()
        ids, offset = self.completion.request.prompt, 0
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for place, index in enumerate(ids):
            value = self.completion.prompt_logprobs[place] if place < len(self.completion.prompt_logprobs) else None
            alternatives = self.completion.prompt_alternatives
            best = alternatives[place] if place < len(alternatives) else []
            self._add(made, index, value, best, offset)
            offset += len(decoder.decode(self.tokenizer.token_bytes[index]))
        return made

    def next(self, text: str, count: int) -> dict[str, Any] | None:
        """Return the entries of those of the first `count` tokens whose text lies in `text`; None for none."""
        limit = len(text.encode())
        made = self.empty()
        while self.done < count and self.written < limit:
            index = self.completion.ids[self.done]
            best = self.completion.alternatives[self.done] if self.done < len(self.completion.alternatives) else []
            self._add(made, index, self.completion.logprobs[self.done], best, self.offset)
            content = self.tokenizer.token_bytes[index]
            if self.prefix and content:
                content, self.prefix = content.removeprefix(self.prefix), b""
            self.written += len(content)
            self.offset += len(self.decoder.decode(content))  # whole characters, as the text has them
            self.done += 1
        return made if made.get("content") or made.get("tokens") else None

    def empty(self) -> dict[str, Any]:
        """Return the shape without entries."""
        if self.chat:
            return {"content": [], "refusal": None}
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def _add(
        self, made: dict[str, Any], index: int, value: float | None, best: Sequence[tuple[int, float]], offset: int
    ) -> None:
        top = list(best[: self.likeliest])
        if self.chat:
            entry = self._entry(index, value)
            made["content"].append(entry | {"top_logprobs": [self._entry(*pair) for pair in top]})
            return
        if value is not None and self.likeliest and index not in {token for token, _ in top}:
            top.append((index, value))
        made["tokens"].append(self.name(index))
        made["token_logprobs"].append(value)
        named = {self.name(token): logprob for token, logprob in top}
        made["top_logprobs"].append(named if value is not None and self.likeliest else None)
        made["text_offset"].append(offset)

    def _entry(self, index: int, value: float | None) -> dict[str, Any]:
        content = self.tokenizer.token_bytes[index]
        return {"token": self.name(index), "logprob": value, "bytes": list(content)}
