"""A text to write, and a text in the making."""

from __future__ import annotations

import codecs
import math
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import torch
from torch import Tensor

from gptcli.base.errors import ConfigError, GptcliError
from gptcli.config.generate import GenerateOptions
from gptcli.data.batches import derived_seed
from gptcli.data.tokenizer import Tokenizer
from gptcli.generate.blocking import Blocked
from gptcli.generate.constrain import Constraint, most_tokens
from gptcli.generate.keyed_draw import draw_by_key
from gptcli.generate.kv_cache import QUERY_BLOCK
from gptcli.generate.masking import Mask
from gptcli.generate.prefix_cache import common_length
from gptcli.generate.prompt_lookup import Lookup
from gptcli.generate.safeguards import NONE, Safeguards
from gptcli.generate.sampling import add_biases, draw, penalize, subtract_penalties
from gptcli.generate.watermark import Marker, Numbers

# stop: an end token, a stop string or the end of a pattern; length: max_tokens or the context; error: see
# Completion.error; cancelled and timeout: Engine.cancel.
FinishReason = Literal["stop", "length", "error", "cancelled", "timeout"]


@dataclass(frozen=True)
class Request:
    """A text to write: `sample` of options.n for a prompt; same options and sample, same text, in any batch."""

    prompt: list[int]  # ids, without the token that begins every window
    options: GenerateOptions
    sample: int = 0
    stop_ids: frozenset[int] = frozenset()  # control tokens that end the text, beside <|endoftext|>
    owner: str = ""  # only prompts of the same owner share what was computed of their common beginning
    first: tuple[int, ...] | None = None  # what the window begins with instead of the tokenizer's own token
    constraint: Constraint | None = None  # of the options, where it was made before: that can take a second
    void: bool = False  # nothing is written: it keeps its place among the others


@dataclass(slots=True)
class Likeliest(Sequence[tuple[int, float]]):
    """Ids with their log-probabilities, likeliest first: 12 bytes each, where tuples in a list take 120."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, place: slice) -> Likeliest: ...

    def __getitem__(self, place: int | slice) -> tuple[int, float] | Likeliest:
        if isinstance(place, slice):
            return Likeliest(self.ids[place], self.values[place])
        return self.ids[place], self.values[place]


@dataclass(eq=False)
class Completion:
    """The text written so far for a request; it never ends inside of a UTF-8 character or of a possible stop string.

    `logprobs` and `alternatives` have an entry for each of `ids`, `prompt_logprobs` and `prompt_alternatives` for each
    token of the prompt (None where nothing comes before it), as far as the options ask for them.
    """

    request: Request
    number: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Likeliest] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
    prompt_alternatives: list[Likeliest] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, taken from an earlier text
    watermarked: int | None = None  # tokens drawn by the key of a watermark, where the engine has one
    text: str = ""
    end_id: int | None = None  # the token that ended it, where one did; it is none of `ids`
    finish_reason: FinishReason | None = None
    error: GptcliError | None = None  # why it could not be written, where finish_reason is "error"

    def check(self) -> None:
        """Raise the error of a completion that could not be written."""
        if self.error is not None:
            raise self.error


class TextBuffer:
    """Bytes of tokens -> text that can be escape: whole characters, and nothing that may begin a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.waiting = ""

    def add(self, content: bytes, *, final: bool = False) -> tuple[str, bool]:
        """Add bytes and return (text that is now certain, whether a stop string ended it)."""
        decoded = self.decoder.decode(content, final)
        if not self.stops:
            return decoded, False
        self.waiting += decoded
        found = [(place + len(stop), place) for stop in self.stops if (place := self.waiting.find(stop)) >= 0]
        if found:  # the one complete first, however the tokens cut the text; of several, the longest
            return self.waiting[: min(found)[1]], True
        held = 0 if final else self._undecided()
        certain, self.waiting = self.waiting[: len(self.waiting) - held], self.waiting[len(self.waiting) - held :]
        return certain, False

    def drop_half_a_character(self) -> None:
        """Forget the bytes of a character that is not whole, where no more will come."""
        self.decoder.reset()

    def _undecided(self) -> int:
        """Return the length of the longest end of the text that is the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(longest, len(self.waiting)), 0, -1):
            if any(stop.startswith(self.waiting[-length:]) for stop in self.stops):
                return length
        return 0


class ActiveSequence:
    """A completion in the making, and what drawing its next token needs."""

    def __init__(
        self, completion: Completion, tokenizer: Tokenizer, window: list[int], room: int,
        constraint: Constraint | None, safeguards: Safeguards = NONE,
    ) -> None:  # fmt: skip
        """Begin a completion; `window` is the prompt with what begins every window, `room` the new tokens that the
        context allows."""
        request = completion.request
        self.completion, self.options, self.window = completion, request.options, window
        self.last_token = -1  # drawn, but not yet in the cache
        self.buffer = TextBuffer(self.options.stop)
        self.random = random.Random(derived_seed(self.options.seed, request.sample))
        self.token_bytes = tokenizer.written_bytes
        self.prefix = tokenizer.prefix if request.first is not None else b""  # a space that a turn begins with
        end_of_text = {*tokenizer.ends, *tokenizer.bos_ids}
        self.ends = request.stop_ids | (end_of_text if self.options.stop_at_eos else set())
        self.end_ids = torch.tensor(sorted(self.ends), dtype=torch.long)
        self.never = end_of_text - self.ends
        prefix_tokens = len(self.prefix) if self.options.choices else 0  # the space of a turn may be a token alone
        self.room = min(most_tokens(self.options) + prefix_tokens, room)
        self.seen: Tensor | None = None
        if self.options.repetition_penalty != 1.0:
            self.seen = torch.tensor(request.prompt, dtype=torch.long)
        self.written: dict[int, int] | None = None  # how often each new token was written
        if self.options.presence_penalty or self.options.frequency_penalty:
            self.written = {}
        self.constraint, self.state = constraint, 0
        self.lookup = Lookup(request.prompt) if self.options.lookup else None
        self.marker: Marker | None = None
        if safeguards.watermark is not None:
            completion.watermarked = 0
            self.marker = Marker(safeguards.watermark) if self.options.temperature else None
        self.blocked, self.tail = safeguards.blocked, b""
        self.mask = Mask() if safeguards.mask_pii else None

    @property
    def finished(self) -> bool:
        return self.completion.finish_reason is not None

    def begins_like(self, other: ActiveSequence) -> bool:
        """Return whether the prompts begin alike, so far that this one is better computed after the other."""
        return common_length(self.window, other.window) >= min(QUERY_BLOCK, len(self.window))

    @property
    def length(self) -> int:
        """Return the number of tokens of the prompt and of the text so far."""
        return len(self.completion.request.prompt) + len(self.completion.ids)

    @property
    def needs_no_processors(self) -> bool:
        """Return whether the next tokens are drawn from the model's logits as they are, whatever they turn out to
        be."""
        options = self.options
        return (
            self.seen is None
            and self.written is None
            and not options.logit_bias
            and self.constraint is None
            and self.lookup is None
            and self.marker is None
            and self.blocked is None
            and not options.logprobs
            and not self.never
            and len(self.completion.ids) >= options.min_tokens
        )

    @property
    def sampling_key(self) -> tuple[float, int | None, float, float]:
        """Return the options that sequences drawn in one batch must have in common."""
        options = self.options
        return options.temperature, options.top_k, options.top_p, options.min_p

    def adjust(self, logits: Tensor) -> None:
        """Change the logits (V,) of the next token, in place, by penalties, biases and constraints."""
        if self.seen is not None:
            penalize(logits, self.seen, self.options.repetition_penalty)
        if self.written:
            subtract_penalties(logits, self.written, self.options.presence_penalty, self.options.frequency_penalty)
        if self.options.logit_bias:
            add_biases(logits, self.options.logit_bias)
        for token in self.never:
            logits[token] = -math.inf
        may_end = len(self.completion.ids) >= self.options.min_tokens
        if self.constraint is not None:
            may_end = self.constraint.automaton.accepts(self.state)
            ends = logits[self.end_ids]
            forbidden = self.constraint.forbidden(self.state, first=bool(self.prefix))
            logits.masked_fill_(forbidden, -math.inf)
            logits[self.end_ids] = ends
        if not may_end and len(self.end_ids):
            logits[self.end_ids] = -math.inf

    def draw(self, logits: Tensor) -> int:
        """Draw the next token from logits (V,), which are changed in place, and another in the place of one that is
        blocked: by the watermark's key where the text has one and a context that is new, else by the seed."""
        self.adjust(logits)
        numbers = None
        if self.marker is not None and (context := self.marker.fresh(self.completion.ids)) is not None:
            self.completion.watermarked = (self.completion.watermarked or 0) + 1
            numbers = self.marker.numbers(context)
        token = self._drawn(logits, numbers)
        while self.blocked is not None and self._is_blocked(self.blocked, token):
            logits[token] = -math.inf
            token = self._drawn(logits, numbers)
        return token

    def _drawn(self, logits: Tensor, numbers: Numbers | None) -> int:
        scores = logits.numpy()
        if scores.max() == -math.inf:
            raise ConfigError("every token that could come next is blocked or leaves the pattern; loosen one of them")
        if numbers is not None:
            return draw_by_key(scores, self.options, numbers)
        return draw(scores, self.options, self.random.random() if self.options.temperature else 0.0)

    def _is_blocked(self, blocked: Blocked, token: int) -> bool:
        ids, wanted = self.completion.ids, blocked.length - 1
        before = ids[-wanted:] if len(ids) >= wanted > 0 else [*self.window, *ids]
        return token not in self.ends and blocked.forbids(before, self.tail, token, self.token_bytes[token])

    def guess(self) -> list[int]:
        """Return tokens that may come next, where the options ask for guesses."""
        return [] if self.lookup is None else self.lookup.guess(min(self.options.lookup, self.room))

    def take_prompt(self, logprobs: Tensor, start: int) -> None:
        """Record log-probabilities (N, V) of the tokens at start + 1... of the window."""
        completion, skipped = self.completion, len(self.window) - len(self.completion.request.prompt)
        if start == 0 and not skipped:  # the first token has none
            completion.prompt_logprobs.append(None)
            completion.prompt_alternatives.append(Likeliest())
        for place, given in enumerate(logprobs, start + 1):
            if skipped <= place < len(self.window):
                completion.prompt_logprobs.append(float(given[self.window[place]]))
                if self.options.prompt_logprobs > 1:
                    completion.prompt_alternatives.append(likeliest(given, self.options.prompt_logprobs))

    def take(self, token: int, logprobs: Tensor | None) -> None:
        """Bring the completion up to date with its next token; logprobs (V,) where they are asked for."""
        completion, self.last_token = self.completion, token
        if token in self.ends:
            completion.end_id = token
            self.finish("stop")
            return
        completion.ids.append(token)
        if self.seen is not None:
            self.seen = torch.cat((self.seen, torch.tensor([token])))
        if self.written is not None:
            self.written[token] = self.written.get(token, 0) + 1
        if logprobs is not None:
            completion.logprobs.append(float(logprobs[token]))
            if self.options.logprobs > 1:
                completion.alternatives.append(likeliest(logprobs, self.options.logprobs))
        if self.lookup is not None:
            self.lookup.add(token)
        content = self.token_bytes[token]
        if self.prefix and content:
            content, self.prefix = content.removeprefix(self.prefix), b""
        if self.blocked is not None:
            self.tail = (self.tail + content)[-self.blocked.tail_bytes - 1 :]
        text, stopped = self.buffer.add(content)
        completion.text += text if self.mask is None else self.mask.add(text, final=stopped)
        if self.constraint is not None:
            self.state = self.constraint.automaton.after(self.state, content)
        if stopped:
            completion.finish_reason = "stop"
        elif self.constraint is not None and self.constraint.ended(self.state):
            self.finish("stop")
        elif len(completion.ids) >= self.room:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the text, with what was held back of it."""
        if reason != "stop":
            self.buffer.drop_half_a_character()
        text, stopped = self.buffer.add(b"", final=True)
        self.completion.text += text if self.mask is None else self.mask.add(text, final=True)
        self.completion.finish_reason = "stop" if stopped and reason == "length" else reason

    def fail(self, error: GptcliError) -> None:
        """End the text with an error."""
        self.finish("error")
        self.completion.error = error


@dataclass
class PromptChunk:
    """The tokens start..end of a prompt, which one pass computes in a row of the cache."""

    sequence: ActiveSequence
    row: int
    start: int
    end: int
    logits: Tensor | None  # (V,), after the last token of the prompt

    @property
    def is_last(self) -> bool:
        return self.end == len(self.sequence.window)


def likeliest(logprobs: Tensor, count: int) -> Likeliest:
    """Return the `count` likeliest ids of (V,) with their log-probabilities."""
    best = logprobs.topk(min(count, len(logprobs)))
    return Likeliest(array("i", best.indices.tolist()), array("d", best.values.tolist()))
