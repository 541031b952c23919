"""The options of text generation: flags of `generate`, and what a JSONL record may set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptcli.config.schema import Section, number, value

MAX_BIASED_TOKENS = 300
MAX_BIAS = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions(Section):
    """Sampling options: the flags of `generate` and the options of a record of its JSONL input."""

    max_tokens: int = number(200, "write at most this many new tokens", ge=0, le=1 << 31, sampling=True)
    temperature: float = number(
        0.8, "divide the logits by this; 0 always takes the most likely token", ge=0, le=100, sampling=True
    )
    top_k: int | None = number(None, "keep only the K most likely tokens", ge=1, sampling=True)
    top_p: float = number(1.0, "keep only the fewest tokens whose probabilities add up to P", gt=0, le=1, sampling=True)
    min_p: float = number(
        0.0, "keep only tokens at least P times as likely as the most likely one", ge=0, le=1, sampling=True
    )
    repetition_penalty: float = number(
        1.0,
        "divide positive logits of tokens already seen by this, multiply negative ones",
        ge=0.01,
        le=100,
        sampling=True,
    )
    presence_penalty: float = number(
        0.0, "subtract this from the logits of tokens already written", ge=-2, le=2, sampling=True
    )
    frequency_penalty: float = number(
        0.0, "subtract this from a token's logit for each time it was written", ge=-2, le=2, sampling=True
    )
    logit_bias: tuple[tuple[float, ...], ...] = value((), "add to the logits of tokens: pairs of an id and a bias")
    seed: int = number(
        0, "random seed: the same one gives the same text, alone or in any batch", ge=0, lt=1 << 63, sampling=True
    )
    n: int = number(1, "completions per prompt", ge=1, le=1 << 20)
    stop: tuple[str, ...] = value((), "stop before the first of these strings")
    truncate: Literal["error", "left"] = value("error", "a prompt longer than the context: refuse it, or keep its end")
    logprobs: int = number(0, "0: none; 1: log-probability of each new token; K >= 2: also of the K most likely", ge=0)
    prompt_logprobs: int = number(0, "the same for each token of the prompt, given those before it", ge=0)
    min_tokens: int = number(0, "write at least this many new tokens before the text may end", ge=0)
    stop_at_eos: bool = value(True, "end the text at <|endoftext|>; false: never sample it")
    choices: tuple[str, ...] = value((), "the completion is exactly one of these, whatever max_tokens")
    regex: str | None = value(None, "the whole completion matches this pattern")
    json_schema: str | None = value(None, "the completion is JSON that this JSON Schema describes, given as JSON")
    lookup: int = number(0, "guess this many tokens from the text so far (prompt lookup), for speed only", ge=0, le=64)

    @property
    def constrained(self) -> bool:
        """Return whether the text must be a choice, match a pattern or be JSON of a schema."""
        return bool(self.choices) or self.regex is not None or self.json_schema is not None

    def problems(self) -> Iterator[tuple[str, str]]:
        bound = [name for name in ("choices", "regex", "json_schema") if getattr(self, name) not in ((), None)]
        if len(bound) > 1:
            yield bound[1], f"{bound[0]} says what the text may be; leave out one of the two"
        if self.min_tokens and bound:
            yield "min_tokens", f"{bound[0]} says where the text may end; leave it out"
        if "" in self.stop:
            yield "stop", "an empty text; leave it out"
        if "" in self.choices:
            yield "choices", "an empty choice; leave it out"
        if self.min_tokens > self.max_tokens:
            yield "min_tokens", f"{self.min_tokens} is more than max_tokens {self.max_tokens}"
        if self.max_tokens == 0 and not self.prompt_logprobs:
            yield "max_tokens", "must be >= 1, got 0; 0 is for prompt_logprobs alone"
        if len(self.logit_bias) > MAX_BIASED_TOKENS:
            yield "logit_bias", f"{len(self.logit_bias)} tokens, more than {MAX_BIASED_TOKENS}"
        for pair in self.logit_bias:
            if len(pair) != 2 or not float(pair[0]).is_integer() or pair[0] < 0:
                yield "logit_bias", f"want pairs of a token's id and a bias, got {pair}"
            elif not -MAX_BIAS <= pair[1] <= MAX_BIAS:
                yield "logit_bias", f"the bias of token {pair[0]:.0f} must be from -100 to 100, got {pair[1]}"
