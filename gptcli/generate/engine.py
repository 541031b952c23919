"""Text generation: requests in, completions out, over one KV cache with a row for each text in the making.

A row that ends is given to the next request at once. Prompts are computed together, laid end to end, and each only
from where it parts from what some row already holds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptcli.base.errors import DataError, NumericalError
from gptcli.base.ready import Ready, always
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.machine import device_memory_bytes
from gptcli.device.runtime import Runtime
from gptcli.generate.constrain import Constraint, TokenTable, most_tokens, pattern_of
from gptcli.generate.kv_cache import QUERY_BLOCK, Decode, Prefill, cache_bytes
from gptcli.generate.multi_step import STEPS, Ahead
from gptcli.generate.prefix_cache import Slots, common_length
from gptcli.generate.sampling import draw
from gptcli.generate.sequence import Completion, FinishReason, Request, Row, TextBuffer
from gptcli.model.gpt import GPT, Layout

__all__ = ["Completion", "Engine", "FinishReason", "Request", "TextBuffer"]

CACHED_PATTERNS = 8  # each with up to CACHED_MASKS of the vocabulary's size
# Where nobody says how many rows: 64 prompts of GPT-2 124M took 8.0 s with 16, 7.3 with 32, 6.9 with 64.
MOST_SLOTS, CACHE_SHARE = 64, 0.25
PREFILL_TOKENS = 1024  # of prompts in one pass, beside a single longer one: the matrices need no more to be busy
# Else a call with an argument that is not a tensor (a dtype, a packed weight) looks for its __torch_function__, and the
# exception that ends the search takes 1 to 6 microseconds: of the time of one text 4 %, in int8 8 %.
_NO_OVERRIDES = torch._C.DisableTorchFunctionSubclass


def _default_slots(config: ModelConfig, runtime: Runtime) -> int:
    row = cache_bytes(config, 1, config.context_length, activation_size=runtime.cache_dtype.itemsize)
    room = device_memory_bytes(runtime.device) * CACHE_SHARE
    return max(1, min(MOST_SLOTS, int(room / row)))


@dataclass
class _Queue:
    """Requests that wait, and completions in the order of the requests."""

    waiting: Iterator[Request]
    ready: Ready
    ahead: Request | None = None  # read and not yet begun
    begun: int = 0
    unfinished: deque[Completion] = field(default_factory=deque)

    def peek(self, *, wait: bool) -> Request | None:
        """The next request, None at the end and, unless `wait`, where it is not there yet."""
        if self.ahead is None and (wait or self.ready()):
            self.ahead = next(self.waiting, None)
        return self.ahead

    def begin(self) -> Completion:
        assert self.ahead is not None
        completion = Completion(self.ahead, self.begun)
        self.ahead = None
        self.begun += 1
        self.unfinished.append(completion)
        return completion

    def drop_finished(self) -> None:
        """Of those that nobody before them keeps waiting."""
        while self.unfinished and self.unfinished[0].finish_reason is not None:
            self.unfinished.popleft()


class Engine:
    """A model ready to write. `slots` texts are in the making at once, which bounds memory.

    What the slots hold stays from one run to the next: a prompt that goes on from an earlier text, as a conversation
    does, costs its new tokens only. One run at a time.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        runtime: Runtime,
        *,
        slots: int | None = None,
        most: int | None = None,
        ahead: int | None = None,
    ) -> None:
        """`slots`: default 64, or as many as have room for whole contexts in a quarter of the memory, and no more than
        `most` texts; `ahead`: steps that are computed in one go where rows allow it, default what pays on the device.
        """
        self.model, self.tokenizer, self.runtime = model, tokenizer, runtime
        self.context_length = model.config.context_length
        self.first = tokenizer.first
        self.count = slots or min(most or MOST_SLOTS, _default_slots(model.config, runtime))
        self.slots = Slots(model.config, self.count, dtype=runtime.cache_dtype, device=runtime.device)
        self.steps_ahead = ahead if ahead is not None else STEPS if runtime.device.type == "cuda" else 0
        self.ahead: Ahead | None = None
        self.rows: list[Row] = []
        self.token_table: TokenTable | None = None
        self.constraints: dict[str, Constraint] = {}

    def fit(self, prompt: list[int], options: GenerateOptions) -> list[int]:
        """The prompt as far as it fits beside one new token; DataError unless options.truncate allows a cut."""
        room = self.context_length - len(self.first)
        if options.choices:  # which come whole; the last token of a text is never fed
            room -= most_tokens(options) - 1
        if room < 0:
            raise DataError(f"a choice takes up to {most_tokens(options)} tokens, more than the context; shorten it")
        if not prompt and not self.first:
            raise DataError("the prompt is empty and the tokenizer has no <|endoftext|> to begin with; give a prompt")
        if len(prompt) > room and options.truncate == "error":
            raise DataError(
                f"the prompt has {len(prompt)} tokens and the context holds {room}; shorten it or pass --truncate left"
            )
        return prompt[len(prompt) - min(room, len(prompt)) :]

    @torch.inference_mode()
    def run(
        self, requests: Iterable[Request], *, capacity: int | None = None, ready: Ready = always
    ) -> Iterator[Completion]:
        """Completions, finished, in the order of the requests, each as soon as those before it are done."""
        finished: dict[int, Completion] = {}
        next_number = 0
        for completion in self.steps(requests, capacity=capacity, ready=ready):
            if completion.finish_reason is not None:
                finished[completion.number] = completion
            while next_number in finished:
                yield finished.pop(next_number)
                next_number += 1

    @torch.inference_mode()
    def steps(
        self, requests: Iterable[Request], *, capacity: int | None = None, ready: Ready = always
    ) -> Iterator[Completion]:
        """Every completion after every token it got. `capacity`: tokens a row must hold, default the context;
        `ready`: whether the next request is there, which is not waited for while there is something to write."""
        queue = _Queue(iter(requests), ready)
        self.slots.begin_run(min((capacity or self.context_length) + self.steps_ahead, self.context_length))
        self.rows = []
        tokens: list[int] = []  # the last of each row, which the cache does not hold yet
        while True:
            # No request far ahead of the oldest unfinished one: results wait for their turn, and memory is bounded.
            while (
                len(self.rows) < self.count
                and len(queue.unfinished) < 8 * self.count
                and (request := queue.peek(wait=not self.rows))
            ):
                if request.void:
                    completion = queue.begin()
                    completion.finish_reason = "stop"
                    yield completion
                    queue.drop_finished()
                    continue
                begun = len(self.rows)
                tokens += self._begin(queue)
                yield from (row.completion for row in self.rows[begun:])
                self._drop_finished(tokens)
                queue.drop_finished()
            if not self.rows:
                return
            yield from self._go_ahead(tokens) if self._can_go_ahead() else self._step(tokens)
            self._drop_finished(tokens)
            queue.drop_finished()

    def _begin(self, queue: _Queue) -> list[int]:
        """Give free rows to the next requests, as many as one pass computes -> the first token of each."""
        windows: list[list[int]] = []
        known: list[Tensor | None] = []
        counts: list[int] = []
        first = len(self.rows)
        while len(self.rows) < self.count and (request := queue.peek(wait=False)) and not request.void:
            window = self.first + request.prompt
            if counts and (
                sum(counts) + len(window) > PREFILL_TOKENS
                or any(common_length(other, window) >= min(QUERY_BLOCK, len(window)) for other in windows)
            ):
                break  # it may begin with what this pass computes
            share, logits = self.slots.place(window, len(self.rows))
            windows.append(window)
            known.append(logits)
            counts.append(len(window) - share)
            completion = queue.begin()
            constraint = self._constraint(request.options)
            self.rows.append(Row(completion, self.tokenizer, self.context_length - len(window) + 1, constraint))
        places = [index for index, count in enumerate(counts) if count]
        if places:
            layout = Prefill(self.slots.cache, [first + place for place in places], [counts[place] for place in places])
            new = [token for place in places for token in windows[place][-counts[place] :]]
            hidden = self._hidden([new], layout)
            for place, logits in zip(places, self._logits(hidden[0, layout.last]), strict=True):
                known[place] = logits
                self.slots.filled(first + place, windows[place], logits)
        return self._draw(torch.stack([logits for logits in known if logits is not None]), self.rows[first:])

    def _step(self, tokens: list[int]) -> Iterator[Completion]:
        """One more token of every row, and more where a guess was right; `tokens`, the last of each, are replaced.

        A guess is computed as if it had been drawn, and then drawn for: so nothing but the speed changes.
        """
        guesses = [row.guess() for row in self.rows]
        held = self.slots.cache.lengths[: len(tokens)]
        width = 1 + min(max(map(len, guesses)), self.slots.cache.capacity - max(held) - 1)
        fed = [([token, *guess] + [token] * width)[:width] for token, guess in zip(tokens, guesses, strict=True)]
        layout = Decode(self.slots.cache, len(tokens), width)
        hidden = self._hidden(fed, layout)  # (B, width, C)
        going = list(range(len(tokens)))
        for place in range(width):
            every = len(going) == len(tokens)
            drawn = self._draw(
                self._logits(hidden[:, place] if every else hidden[going, place]), [self.rows[i] for i in going]
            )
            for index, token in zip(going, drawn, strict=True):
                tokens[index] = token
                self.slots.advance(index, fed[index][place], held[index] + place + 1)
                yield self.rows[index].completion
            going = [
                index
                for index in going
                if place + 1 < width and not self.rows[index].finished and fed[index][place + 1] == tokens[index]
            ]
            if not going:
                return

    def _can_go_ahead(self) -> bool:
        """Whether the next tokens of all rows can be drawn in one go."""
        if not self.steps_ahead:
            return False
        if self.ahead is None or self.ahead.cache is not self.slots.cache:
            self.ahead = Ahead(
                self.model, self.slots.cache, count=self.steps_ahead, vocab_size=self.tokenizer.vocab_size
            )
        return self.ahead.fits(self.rows)

    def _go_ahead(self, tokens: list[int]) -> Iterator[Completion]:
        """As _step, several times over; what comes after the end of a row is dropped."""
        assert self.ahead is not None
        for free in range(len(tokens), self.ahead.batch(len(tokens))):
            self.slots.make_room(free, self.steps_ahead)
        held = self.slots.cache.lengths[: len(tokens)]
        drawn, finite = self.ahead.run(self.rows, tokens)
        for place in range(self.steps_ahead):
            for index, row in enumerate(self.rows):
                if row.finished:
                    continue
                if not finite[index][place]:
                    raise _not_finite(row)
                self.slots.advance(index, tokens[index], held[index] + place + 1)
                tokens[index] = drawn[index][place]
                row.take(tokens[index], None)
                yield row.completion

    def _constraint(self, options: GenerateOptions) -> Constraint | None:
        pattern = pattern_of(options)
        if pattern is None:
            return None
        if self.token_table is None:
            self.token_table = TokenTable(self.tokenizer)
        if pattern not in self.constraints:
            if len(self.constraints) >= CACHED_PATTERNS:
                del self.constraints[next(iter(self.constraints))]
            self.constraints[pattern] = Constraint(pattern, self.token_table)
        return self.constraints[pattern]

    def _hidden(self, ids: list[list[int]], layout: Layout) -> Tensor:
        """Ids (B, T) -> the head's input (B, T, C)."""
        with _NO_OVERRIDES():
            batch = torch.tensor(ids, device=self.runtime.device)
            return self.model.hidden(batch, dtype=self.runtime.dtype, layout=layout)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, V), float32 on the CPU."""
        with _NO_OVERRIDES():
            logits = self.model.logits(hidden).cpu()
        return logits[:, : self.tokenizer.vocab_size]  # rows of the embedding beyond the tokenizer are padding

    def _draw(self, logits: Tensor, rows: list[Row]) -> list[int]:
        """The next token of each row, from logits (B, V), and its completion brought up to date."""
        tokens = []
        for row, scores, total in zip(rows, logits, logits.sum(-1).tolist(), strict=True):
            if not math.isfinite(total):
                raise _not_finite(row)
            logprobs = scores.double().log_softmax(-1) if row.options.logprobs else None
            row.adjust(scores)
            uniform = row.random.random() if row.options.temperature else 0.0
            tokens.append(draw(scores.numpy(), row.options, uniform))
            row.take(tokens[-1], logprobs)
        return tokens

    def _drop_finished(self, tokens: list[int]) -> None:
        """Free the rows that are done: the last in use takes the place of each."""
        for index in reversed(range(len(self.rows))):
            if self.rows[index].finished:
                last = len(self.rows) - 1
                self.slots.release(index)
                self.slots.swap(index, last)
                self.rows[index], tokens[index] = self.rows[last], tokens[last]
                self.rows.pop()
                tokens.pop()


def _not_finite(row: Row) -> NumericalError:
    place = len(row.completion.request.prompt) + len(row.completion.ids)
    return NumericalError(f"non-finite logits at position {place}; the checkpoint is damaged or was trained to NaN")
