"""Text generation: requests in, completions out, over one KV cache with a row for each text in the making.

A row that ends is given to the next request at once. The rows in use are always the first ones: when one ends in the
middle, the last takes its place.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from gptcli.config import GenerateOptions
from gptcli.data.batches import derived_seed
from gptcli.data.tokenizer import Tokenizer
from gptcli.errors import DataError, NumericalError
from gptcli.model import GPT, KVCache, Window
from gptcli.runtime import Runtime
from gptcli.sample import draw, penalize

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """A text to write: `sample` of options.n for a prompt; same options and sample, same text, in any batch."""

    prompt: list[int]  # ids, without the token that begins every window
    options: GenerateOptions
    sample: int = 0
    stop_ids: frozenset[int] = frozenset()  # control tokens that end the text, beside <|endoftext|>


@dataclass
class Completion:
    """What was written so far; `text` never ends inside of a UTF-8 character or of a stop string that may come."""

    request: Request
    number: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None


class TextBuffer:
    """Bytes of tokens -> text that can be shown: whole characters, and nothing that may begin a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.waiting = ""

    def add(self, content: bytes, *, final: bool = False) -> tuple[str, bool]:
        """-> (text that is now certain, whether a stop string ended it)."""
        self.waiting += self.decoder.decode(content, final)
        found = [(place + len(stop), place) for stop in self.stops if (place := self.waiting.find(stop)) >= 0]
        if found:  # the one complete first, however the tokens cut the text; of several, the longest
            return self.waiting[: min(found)[1]], True
        held = 0 if final else self._undecided()
        certain, self.waiting = self.waiting[: len(self.waiting) - held], self.waiting[len(self.waiting) - held :]
        return certain, False

    def _undecided(self) -> int:
        """Length of the longest end of the text that is the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(longest, len(self.waiting)), 0, -1):
            if any(stop.startswith(self.waiting[-length:]) for stop in self.stops):
                return length
        return 0


class _Row:
    """A completion in the making, and what drawing its next token needs."""

    def __init__(self, completion: Completion, tokenizer: Tokenizer, window_tokens: int) -> None:
        self.completion = completion
        options = completion.request.options
        self.options = options
        self.buffer = TextBuffer(options.stop)
        self.generator = torch.Generator().manual_seed(derived_seed(options.seed, completion.request.sample))
        self.token_bytes = tokenizer.token_bytes
        self.ends = completion.request.stop_ids | {tokenizer.end_of_text}
        self.room = min(options.max_tokens, window_tokens)
        self.seen = dict.fromkeys(completion.request.prompt)

    def draw(self, logits: torch.Tensor) -> int:
        """Take the next token from logits (V,) and bring the completion up to date."""
        completion = self.completion
        if not bool(torch.isfinite(logits).all()):
            place = len(completion.request.prompt) + len(completion.ids)
            raise NumericalError(
                f"non-finite logits at position {place}; the checkpoint is damaged or was trained to NaN"
            )
        penalized = logits
        if self.options.repetition_penalty != 1.0:
            penalized = penalize(logits, torch.tensor(list(self.seen)), self.options.repetition_penalty)
        token = draw(penalized, self.options, self.generator)
        self.seen[token] = None
        if token in self.ends:
            self._finish("stop")
            return token
        completion.ids.append(token)
        if self.options.logprobs:
            completion.logprobs.append(float(logits.double().log_softmax(-1)[token]))
        text, stopped = self.buffer.add(self.token_bytes[token])
        completion.text += text
        if stopped:
            completion.finish_reason = "stop"
        elif len(completion.ids) >= self.room:
            self._finish("length")
        return token

    def _finish(self, reason: FinishReason) -> None:
        text, stopped = self.buffer.add(b"", final=True)
        self.completion.text += text
        self.completion.finish_reason = "stop" if stopped else reason


class Engine:
    """A model ready to write. `slots` texts are in the making at once, which bounds memory."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, runtime: Runtime, *, slots: int = 8) -> None:
        self.model, self.tokenizer, self.runtime, self.slots = model, tokenizer, runtime, slots
        self.context_length = model.config.context_length
        self.first = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]

    def fit(self, prompt: list[int], options: GenerateOptions) -> list[int]:
        """The prompt as far as it fits beside one new token; DataError unless options.truncate allows a cut."""
        room = self.context_length - len(self.first)
        if not prompt and not self.first:
            raise DataError("the prompt is empty and the tokenizer has no <|endoftext|> to begin with; give a prompt")
        if len(prompt) > room and options.truncate == "error":
            raise DataError(
                f"the prompt has {len(prompt)} tokens and the context holds {room}; shorten it or pass --truncate left"
            )
        return prompt[-room:]

    @torch.inference_mode()
    def run(self, requests: Iterable[Request], *, capacity: int | None = None) -> Iterator[Completion]:
        """Completions, finished, in the order of the requests, each as soon as those before it are done."""
        finished: dict[int, Completion] = {}
        next_number = 0
        for completion in self.steps(requests, capacity=capacity):
            if completion.finish_reason is not None:
                finished[completion.number] = completion
            while next_number in finished:
                yield finished.pop(next_number)
                next_number += 1

    @torch.inference_mode()
    def steps(self, requests: Iterable[Request], *, capacity: int | None = None) -> Iterator[Completion]:
        """Every completion after every token it got. `capacity`: tokens a row must hold, default the context."""
        waiting = iter(requests)
        cache = KVCache(
            self.model.config,
            self.slots,
            min(capacity or self.context_length, self.context_length),
            dtype=self.runtime.dtype,
            device=self.runtime.device,
        )
        rows: list[_Row] = []
        tokens: list[int] = []
        unfinished: deque[Completion] = deque()
        count = 0
        exhausted = False
        while rows or not exhausted:
            # No request far ahead of the oldest unfinished one: results wait for their turn, and memory is bounded.
            while len(rows) < self.slots and not exhausted and len(unfinished) < 8 * self.slots:
                request = next(waiting, None)
                if request is None:
                    exhausted = True
                    break
                completion = Completion(request, count)
                count += 1
                unfinished.append(completion)
                window = self.first + request.prompt
                row = _Row(completion, self.tokenizer, self.context_length - len(window) + 1)
                cache.lengths[len(rows)] = 0
                token = row.draw(self._logits(cache, [window], len(rows))[0])
                rows.append(row)
                tokens.append(token)
                yield completion
            self._drop_finished(cache, rows, tokens)
            if rows:
                logits = self._logits(cache, [[token] for token in tokens], 0)
                for index, row in enumerate(rows):
                    tokens[index] = row.draw(logits[index])
                    yield row.completion
                self._drop_finished(cache, rows, tokens)
            while unfinished and unfinished[0].finish_reason is not None:
                unfinished.popleft()

    def _logits(self, cache: KVCache, ids: list[list[int]], first_row: int) -> torch.Tensor:
        """Logits (B, V), float32 on the CPU, after the last of ids (B, T), which rows first_row.. of the cache take."""
        batch = torch.tensor(ids, device=self.runtime.device)
        window = Window(cache, first_row, *batch.shape)
        hidden = self.model.hidden(batch, dtype=self.runtime.dtype, layout=window)
        logits = self.model.logits(hidden[:, -1]).cpu()
        return logits[:, : self.tokenizer.vocab_size]  # rows of the embedding beyond the tokenizer are padding

    @staticmethod
    def _drop_finished(cache: KVCache, rows: list[_Row], tokens: list[int]) -> None:
        for index in reversed(range(len(rows))):
            if rows[index].completion.finish_reason is None:
                continue
            last = len(rows) - 1
            if index != last:
                cache.move(last, index)
                rows[index], tokens[index] = rows[last], tokens[last]
            rows.pop()
            tokens.pop()
