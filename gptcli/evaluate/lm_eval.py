"""gptcli's models for lm-eval (EleutherAI's evaluation harness). Imported only where lm-eval is installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM

from gptcli.base.errors import DataError
from gptcli.config.generate import GenerateOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import Runtime
from gptcli.evaluate.perplexity import score_documents
from gptcli.evaluate.scoring import Sequence, score_sequences
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT

MAX_TOKENS = 256  # of an answer, where a task does not say; the number of lm-eval's own models


@dataclass(frozen=True)
class Beginning:
    """The beginning that lm-eval's own hf model gives to what it asks of a model."""

    added: int | None  # the token that the tokenizer of transformers puts before every text, if any
    prefix: int  # the context of a text without one


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A model as lm-eval asks it. What does not fit the context loses its beginning, as with lm-eval's own models;
    `truncated` counts such requests."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, runtime: Runtime, as_hf: Beginning | None = None) -> None:
        """Begin contexts as lm-eval's hf model does where `as_hf`, for the same numbers; else as gptcli does."""
        super().__init__()
        self.model, self.gpt_tokenizer, self.runtime, self.as_hf = model, tokenizer, runtime, as_hf
        self.bos_ids = tokenizer.bos_ids if as_hf is None else []
        self.room = model.config.context_length - len(self.bos_ids)
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        """Return the token that every sequence begins with; lm-eval gives it as the context of a text without one."""
        if self.as_hf is not None:
            return self.as_hf.prefix
        if not self.bos_ids:
            raise DataError(
                "the task scores texts without a context, and the tokenizer has no <|endoftext|>; take another"
            )
        return self.bos_ids[0]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return ids, none of them special but what transformers puts before a text."""
        ids = self.gpt_tokenizer.encode(string)
        if self.as_hf is None or self.as_hf.added is None or add_special_tokens is False:
            return ids
        return [self.as_hf.added, *ids]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:  # noqa: ARG002
        """Score pairs as TemplateLM does, which encodes them, but without its progress bar, which TQDM_DISABLE does not
        reach."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return (summed log-probability, whether every token was the likeliest) of each continuation."""
        sequences = (self._sequence(context, continuation) for _, context, continuation in requests)
        found = score_sequences(self.model, sequences, self.runtime, greedy=True)
        return [(-float(scored.nats.double().sum()), bool(scored.greedy)) for scored in found]

    def _sequence(self, context: list[int], continuation: list[int]) -> Sequence:
        if context == self.bos_ids:
            context = []
        kept = continuation[-self.room - 1 :]
        excess = max(0, len(context) + len(kept) - 1 - self.room)
        self.truncated += excess > 0 or len(kept) < len(continuation)
        context = context[excess:]
        return Sequence(self.bos_ids + context + kept, len(self.bos_ids) + len(context))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Return the summed log-probability of whole texts, in overlapping windows as `gptcli evaluate` has them, or in
        those of lm-eval's hf model."""
        if self.as_hf is not None:
            return [self._rolled(request.args[0]) for request in requests]
        documents = (self.gpt_tokenizer.encode(request.args[0]) for request in requests)
        return [-score.nats for score in score_documents(self.model, self.gpt_tokenizer, documents, self.runtime)]

    def _rolled(self, text: str) -> float:
        windows = utils.get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.eot_token_id, max_seq_len=self.room, context_len=1
        )
        pairs = map(utils.make_disjoint_window, windows)
        sequences = (self._sequence(context, continuation) for context, continuation in pairs)
        scores = score_sequences(self.model, sequences, self.runtime, greedy=True)
        return -sum(float(scored.nats.double().sum()) for scored in scores)

    def prompt_room(self, max_tokens: int) -> int:
        """Return tokens of a prompt beside an answer, which takes at most half of a short context."""
        if self.as_hf is not None:
            return max(1, self.room - max_tokens)
        return self.room - min(max_tokens, self.room // 2) + 1  # the last token written is never fed

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Return the text that continues each prompt, up to the first of its stop strings."""
        engine = Engine(self.model, self.gpt_tokenizer, self.runtime)

        def prepared() -> Iterator[Request]:
            for request in requests:
                context, given = request.args
                options = draw_options(given)
                room = self.prompt_room(options.max_tokens)
                ids = self.tok_encode(context)
                self.truncated += len(ids) > room
                if self.as_hf is None:
                    yield Request(ids[-room:], options)
                else:
                    yield Request(ids[-room:] or [self.as_hf.prefix], options, first=())

        return [completion.text for completion in engine.run(prepared())]


def draw_options(given: dict[str, Any]) -> GenerateOptions:
    """Translate lm-eval's generation_kwargs; greedy unless they ask to sample."""
    until = given.get("until") or ()
    sampled = given.get("do_sample", float(given.get("temperature") or 0) > 0)
    return GenerateOptions(
        max_tokens=int(given.get("max_gen_toks") or given.get("max_new_tokens") or MAX_TOKENS),
        temperature=float(given.get("temperature") or 1) if sampled else 0.0,
        top_k=given.get("top_k") or None,
        top_p=float(given.get("top_p") or 1),
        stop=(until,) if isinstance(until, str) else tuple(stop for stop in until if stop),
        truncate="left",
    )
