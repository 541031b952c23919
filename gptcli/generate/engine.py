"""Text generation: requests in, completions out, over one KV cache with a row for each text in the making.

    add(request)    queue a text
    step()          compute a chunk of the waiting prompts, then the next token of every text in the making
    cancel(text)    give it up

A row whose text ends is given to the next request. Prompts are computed together, laid end to end, each from where it
parts from what some row already holds, and in chunks, so that texts in the making wait for one chunk at most. `steps`
and `run` are loops over these three.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from gptcli.base.errors import DataError, GptcliError, NumericalError, is_out_of_memory
from gptcli.base.ready import Ready, always
from gptcli.config.generate import GenerateOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import Runtime
from gptcli.generate.constrain import Constraints, most_tokens
from gptcli.generate.forward_view import ForwardView
from gptcli.generate.kv_cache import MAX_ROWS, QUERY_BLOCK, Prefill, decode_layout, rows_that_fit
from gptcli.generate.multi_step import STEPS, MultiStepDecoder
from gptcli.generate.prefix_cache import PrefixCache
from gptcli.generate.safeguards import NONE, Safeguards
from gptcli.generate.sequence import ActiveSequence, Completion, FinishReason, PromptChunk, Request, TextBuffer
from gptcli.model.gpt import GPT

__all__ = ["Completion", "Engine", "FinishReason", "Request", "TextBuffer"]

CHUNK_TOKENS = 256  # of prompts between two decoding steps; a multiple of QUERY_BLOCK, so that the bits stay
PREFILL_TOKENS = 1024  # of prompts in one pass while no text waits for it: the matrices need no more to be busy
LOGPROB_ROWS = 64  # of the vocabulary's size, at once


class Engine:
    """A model ready to write, `count` texts at once, which bounds memory. To be used by one thread at a time.

    The cache outlives a run: a prompt that goes on from an earlier text, as in a conversation, costs its new tokens.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, runtime: Runtime, *,
        slots: int | None = None, most: int | None = None, ahead: int | None = None, safeguards: Safeguards = NONE,
    ) -> None:  # fmt: skip
        """Allocate the cache for `slots` texts at once, and plan for `ahead` steps at once where rows allow it.

        By default `slots` is 64, or as many whole contexts as fit a quarter of the memory, and no more than `most`;
        `ahead` is what pays on the device.
        """
        self.model, self.tokenizer, self.runtime, self.safeguards = model, tokenizer, runtime, safeguards
        self.forward = ForwardView(model, runtime)
        self.context_length = model.config.context_length
        self.bos_ids = tokenizer.bos_ids
        self.count = slots or min(most or MAX_ROWS, rows_that_fit(model.config, runtime))
        self.prefixes = PrefixCache(model.config, self.count, dtype=runtime.cache_dtype, device=runtime.device)
        self.steps_ahead = ahead if ahead is not None else STEPS if runtime.device.type == "cuda" else 0
        self.multi_step: MultiStepDecoder | None = None
        self.constraints = Constraints(tokenizer)
        self.begin_run()

    def check(self, options: GenerateOptions) -> None:
        """Raise DataError where options cannot be used here: by the safeguards, or with a token that is none."""
        self.safeguards.check(options)
        if lost := [index for index, _ in options.logit_bias if index >= self.tokenizer.vocab_size]:
            raise DataError(f"logit_bias: no token {lost[0]:.0f}; the vocabulary has {self.tokenizer.vocab_size}")

    def fit(self, prompt: list[int], options: GenerateOptions) -> list[int]:
        """Return the prompt as far as it fits beside one new token.

        DataError as of `check`, where it does not fit and options.truncate allows no cut, or where nothing begins it.
        """
        self.check(options)
        room = self.context_length - len(self.bos_ids)
        if options.choices:  # which come whole; the last token of a text is never fed
            room -= most_tokens(options) - 1
        if room < 0:
            raise DataError(f"a choice takes up to {most_tokens(options)} tokens, more than the context; shorten it")
        if not prompt and not self.bos_ids:
            raise DataError("the prompt is empty and the tokenizer has no <|endoftext|> to begin with; give a prompt")
        if len(prompt) > room and options.truncate == "error":
            raise DataError(
                f"the prompt has {len(prompt)} tokens and the context holds {room}; shorten it or pass --truncate left"
            )
        return prompt[len(prompt) - min(room, len(prompt)) :]

    def run(
        self,
        requests: Iterable[Request],
        *,
        capacity: int | None = None,
        ready: Ready = always,
        keep_failed: bool = False,
    ) -> Iterator[Completion]:
        """Yield completions, finished, in the order of the requests, each as soon as those before it are done.

        Raises the error of a text that could not be written; with `keep_failed` it is a completion like the others.
        """
        finished: dict[int, Completion] = {}
        read = next_number = 0

        def counted() -> Iterator[Request]:
            nonlocal read
            for request in requests:
                read += 1
                yield request

        def in_reach() -> bool:
            """Return whether the next request may be read: not far ahead of the oldest unfinished one, since results
            wait in memory."""
            return read - next_number < 8 * self.count and ready()

        for completion in self.steps(counted(), capacity=capacity, ready=in_reach):
            if completion.finish_reason is not None:
                finished[completion.number] = completion
            while next_number in finished:
                done = finished.pop(next_number)
                if not keep_failed:
                    done.check()
                next_number += 1
                yield done

    def steps(
        self, requests: Iterable[Request], *, capacity: int | None = None, ready: Ready = always
    ) -> Iterator[Completion]:
        """Yield every completion whenever it got new tokens, in a run of its own, which ends any other.

        `capacity`: tokens a row must hold, default the context; `ready`: whether the next request is there, which is
        not waited for while there is something to write.
        """
        self.begin_run(capacity)
        incoming = iter(requests)
        while True:
            while len(self.waiting) < self.free_rows and (not self.busy or ready()):
                request = next(incoming, None)
                if request is None:
                    break
                self.add(request)
            if not self.busy:
                return
            yield from self.step(prompts_first=True)

    def begin_run(self, capacity: int | None = None) -> None:
        """Drop all texts in the making and number new ones from 0. `capacity`: tokens that a row must hold at least,
        default the context."""
        self.waiting: deque[ActiveSequence] = deque()
        self.active: list[ActiveSequence] = []  # in the first rows of the cache
        self.prefilling: ActiveSequence | None = None  # in the row after those: a part of its prompt is computed
        self.settled: list[Completion] = []  # without a step, to be told by the next
        self.added = 0
        self.capacity = capacity or self.context_length
        self.prefixes.begin_run()

    @property
    def busy(self) -> bool:
        """Return whether a step has anything to do."""
        return bool(self.waiting or self.active or self.prefilling or self.settled)

    @property
    def free_rows(self) -> int:
        """Return how many more texts could begin at once."""
        return self.count - len(self.active) - (self.prefilling is not None)

    def add(self, request: Request) -> Completion:
        """Queue a request, whose prompt must `fit`; ConfigError where its pattern cannot be used."""
        self.forward.hear_hooks()  # that were put on the model since the last text
        completion = Completion(request, self.added)
        if request.void:
            completion.finish_reason = "stop"
            self.settled.append(completion)
        else:
            window = (self.bos_ids if request.first is None else list(request.first)) + request.prompt
            room = self.context_length - len(window) + 1
            constraint = request.constraint or self.constraints.of(request.options)
            self.waiting.append(ActiveSequence(completion, self.tokenizer, window, room, constraint, self.safeguards))
        self.added += 1
        return completion

    @torch.inference_mode()
    def cancel(self, completion: Completion, reason: FinishReason = "cancelled") -> None:
        """Give up a text, waiting or in the making, and free its row; one that is finished stays as it is."""
        if completion.finish_reason is not None:
            return
        for sequence in (*self.waiting, *self.active, *([self.prefilling] if self.prefilling else [])):
            if sequence.completion is completion:
                sequence.finish(reason)
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.finished)
        self._free_rows()

    @torch.inference_mode()
    def step(self, *, prompts_first: bool = False) -> list[Completion]:
        """Compute a chunk of the prompts, then a token of every text in the making -> the completions that changed.

        With `prompts_first`, for those who wait for all texts and not for the next token of one, no token is drawn
        until every row has its prompt. While no text is in the making none waits either, and what is told of a new one
        is its first token, at once.
        """
        changed, self.settled = self.settled, []
        prompts_first = prompts_first or not self.active
        begun = self._prefill(PREFILL_TOKENS if prompts_first else CHUNK_TOKENS)
        changed += begun
        if self.active and not (prompts_first and (begun or self.prefilling)):
            written = [sequence.completion for sequence in self.active]
            if self._can_go_ahead():
                self._go_ahead()
            else:
                self._decode()
            changed += (completion for completion in written if completion not in begun)
            self._free_rows()
        return changed

    @torch.inference_mode()
    def rest(self) -> None:
        """Make a row free, while there is nothing to write, so that the next prompt need not wait for that."""
        if not self.busy:
            self.prefixes.make_way()

    def _prefill(self, budget: int) -> list[Completion]:
        """Compute up to `budget` tokens of prompts in one pass -> the completions that have their first token."""
        chunks: list[PromptChunk] = []
        row = len(self.active)
        while budget >= QUERY_BLOCK and row < self.count and (chunk := self._next_chunk(row, budget, chunks)):
            chunks.append(chunk)
            budget -= chunk.end - chunk.start
            row += 1
        try:
            self._compute([chunk for chunk in chunks if chunk.end > chunk.start])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            for chunk in chunks:
                chunk.sequence.fail(GptcliError("out of memory while reading the prompt; write fewer texts at once"))
        begun = [chunk.sequence for chunk in chunks if chunk.is_last or chunk.sequence.finished]
        if len(begun) < len(chunks):
            self.prefilling = chunks[-1].sequence
        self.active += begun
        to_draw = [chunk for chunk in chunks if chunk.is_last and not chunk.sequence.finished]
        if to_draw:
            logits = torch.stack([chunk.logits for chunk in to_draw if chunk.logits is not None])
            self._draw(logits, [chunk.sequence for chunk in to_draw])
        self._free_rows()
        return [sequence.completion for sequence in begun]

    def _next_chunk(self, row: int, budget: int, others: Sequence[PromptChunk]) -> PromptChunk | None:
        """Return what of a prompt is computed in a row: the rest of one that was begun, else the beginning of another,
        which has to wait where it begins with what the same pass computes."""
        logits = None
        if self.prefilling is not None:
            sequence, self.prefilling = self.prefilling, None
        else:
            if not self.waiting or any(self.waiting[0].begins_like(other.sequence) for other in others):
                return None
            sequence = self.waiting.popleft()
            request, window = sequence.completion.request, sequence.window
            longest = max(self.capacity, len(window) + sequence.room)
            self.prefixes.grow(min(longest + self.steps_ahead, self.context_length))
            share = not request.options.prompt_logprobs
            known, logits = self.prefixes.place(window, row, owner=request.owner, share=share)
            sequence.completion.cached_tokens = max(0, known - len(self.bos_ids))
        start, end = self.prefixes.cache.lengths[row], len(sequence.window)
        if end - start > budget:
            end = (start + budget) // QUERY_BLOCK * QUERY_BLOCK
        return PromptChunk(sequence, row, start, end, logits)

    def _compute(self, chunks: Sequence[PromptChunk]) -> None:
        """Compute chunks of prompts, laid end to end, with the logits after those that end one."""
        if not chunks:
            return
        counts = [chunk.end - chunk.start for chunk in chunks]
        layout = Prefill(self.prefixes.cache, [chunk.row for chunk in chunks], counts)
        ids = [token for chunk in chunks for token in chunk.sequence.window[chunk.start : chunk.end]]
        hidden = self.forward.hidden([ids], layout)[0]  # (N, C)
        last = [number for number, chunk in enumerate(chunks) if chunk.is_last]
        if last:
            for number, logits in zip(last, self._logits(hidden[layout.last[last]]), strict=True):
                chunks[number].logits = logits
        for chunk, piece in zip(chunks, torch.split(hidden, counts), strict=True):
            self.prefixes.extend(chunk.row, chunk.sequence.window[chunk.start : chunk.end], chunk.logits)
            if chunk.sequence.options.prompt_logprobs:
                self._score_prompt(chunk, piece)

    def _score_prompt(self, chunk: PromptChunk, hidden: Tensor) -> None:
        """Give a sequence the log-probabilities of the tokens of its prompt that come after hidden (N, C)."""
        for number, rows in enumerate(torch.split(hidden, LOGPROB_ROWS)):
            start, logits = chunk.start + number * LOGPROB_ROWS, self._logits(rows)
            if not math.isfinite(logits.sum()):
                chunk.sequence.fail(_not_finite(start))
                return
            chunk.sequence.take_prompt(logits.double().log_softmax(-1), start)

    def _decode(self) -> None:
        """Draw one more token of every text, and more where a guess was right.

        A guess is computed as if it had been drawn, and then drawn for: so nothing but the speed changes.
        """
        sequences, cache = list(self.active), self.prefixes.cache
        guesses = [sequence.guess() for sequence in sequences]
        held = cache.lengths[: len(sequences)]
        width = 1 + min(max(map(len, guesses)), cache.capacity - max(held) - 1)
        fed = [
            ([sequence.last_token, *guess] + [sequence.last_token] * width)[:width]
            for sequence, guess in zip(sequences, guesses, strict=True)
        ]
        hidden = self.forward.hidden(fed, decode_layout(cache, len(sequences), width))  # (B, width, C)
        going = list(range(len(sequences)))
        for place in range(width):
            at_place = hidden[:, place] if len(going) == len(sequences) else hidden[going, place]
            self._draw(self._logits(at_place), [sequences[index] for index in going])
            for index in going:
                self.prefixes.advance(index, fed[index][place], held[index] + place + 1)
            going = [
                index
                for index in going
                if place + 1 < width
                and not sequences[index].finished
                and fed[index][place + 1] == sequences[index].last_token
            ]
            if not going:
                break
        if width > 1 and not math.isfinite(hidden.sum()):  # what was guessed wrongly lies behind what a row holds
            for index in range(len(sequences)):
                cache.erase_stale(index)

    def _can_go_ahead(self) -> bool:
        """Return whether the next tokens of all texts can be drawn in one go."""
        if not self.steps_ahead or self.prefilling:
            return False
        if self.multi_step is None or self.multi_step.cache is not self.prefixes.cache:
            self.multi_step = MultiStepDecoder(
                self.model, self.prefixes.cache, count=self.steps_ahead, vocab_size=self.tokenizer.vocab_size
            )
        return self.multi_step.fits(self.active)

    def _go_ahead(self) -> None:
        """Decode several steps in one go; tokens after the end of a text are dropped."""
        assert self.multi_step is not None
        sequences = self.active
        for free in range(len(sequences), self.multi_step.batch(len(sequences))):
            self.prefixes.make_room(free, self.steps_ahead)
        held = self.prefixes.cache.lengths[: len(sequences)]
        drawn, finite = self.multi_step.run(sequences)
        for index, sequence in enumerate(sequences):
            for place in range(self.steps_ahead):
                if not finite[index][place]:
                    sequence.fail(_not_finite(sequence.length))
                    break
                self.prefixes.advance(index, sequence.last_token, held[index] + place + 1)
                sequence.take(drawn[index][place], None)
                if sequence.finished:
                    break
            if not all(finite[index]):
                self.prefixes.cache.erase_stale(index)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return logits (B, V), without those that pad the embedding beyond the tokenizer."""
        return self.forward.logits(hidden)[:, : self.tokenizer.vocab_size]

    def _draw(self, logits: Tensor, sequences: Sequence[ActiveSequence]) -> None:
        """Draw the next token of each sequence from logits (B, V); one that cannot be drawn fails alone."""
        for sequence, scores, total in zip(sequences, logits, logits.sum(-1).tolist(), strict=True):
            if not math.isfinite(total):
                sequence.fail(_not_finite(sequence.length))
                continue
            if not sequence.room:  # max_tokens is 0
                sequence.finish("length")
                continue
            try:
                logprobs = scores.double().log_softmax(-1) if sequence.options.logprobs else None
                sequence.take(sequence.draw(scores), logprobs)
            except GptcliError as error:  # the automaton of a pattern grows too large
                sequence.fail(error)

    def _free_rows(self) -> None:
        """Free the rows of finished texts: the last one in use takes the place of each."""
        if self.prefilling is not None and self.prefilling.finished:
            self.prefixes.release(len(self.active))
            self.prefilling = None
        for index in reversed(range(len(self.active))):
            if not self.active[index].finished:
                continue
            if self.active[index].completion.error is not None:
                self.prefixes.erase(index)
            last = len(self.active) - 1
            self.prefixes.release(index)
            self.prefixes.swap(index, last)
            self.active[index] = self.active[last]
            self.active.pop()
            if self.prefilling is not None:
                self.prefixes.swap(last, last + 1)


def _not_finite(position: int) -> NumericalError:
    return NumericalError(f"non-finite logits at position {position}; the checkpoint is damaged or was trained to NaN")
