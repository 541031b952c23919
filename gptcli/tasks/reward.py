"""Rewards: of several answers that the model writes to a prompt, those above their mean become likelier.

    grpo      A = (r - mean) / (std + 1e-4), an answer counts as the mean of its tokens              Shao et al. 2024
    dr_grpo   A = r - mean, an answer counts as the sum of its tokens, / max_tokens                   Liu et al. 2025

    of a token   -min(q A, clip(q, 1 - clip, 1 + clip) A) + kl_weight (exp(d) - d - 1)

q = p / p when it was written (Schulman et al. 2017), d = log p_base - log p (its k3 estimator of the KL). Answers are
drawn from the model's own probabilities, at temperature 1, by (seed, step), so that a resumed run writes the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gptcli.base.errors import DataError
from gptcli.config.finetune import FinetuneConfig, RewardConfig
from gptcli.config.generate import GenerateOptions
from gptcli.data.batches import IGNORE, Batch, Step, derived_seed
from gptcli.data.conversation import USER, Message
from gptcli.data.example import Example, Reader
from gptcli.data.messages import read_messages
from gptcli.data.packing import examples_of_step, group_by_tokens, pack
from gptcli.data.rows import Row
from gptcli.data.template import Form
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Together
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT, evaluating
from gptcli.tasks.instruct import row_prompt
from gptcli.tasks.scores import Score, content, make_score, right_answer
from gptcli.tasks.task import LoadBase, Reference, Task
from gptcli.train.loss import divergence_nats, target_hidden, target_log_probabilities
from gptcli.train.metadata import ModelMetadata
from gptcli.train.metrics import Record
from gptcli.train.run import Validation

STD_EPS = 1e-4


def reward(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    base: ModelMetadata,
    max_tokens: int,
    load_base: LoadBase | None,
) -> Task:
    """Make the task: prompts are turns of a conversation where the base has a form of it, else text.

    `load_base` gives the base, which the KL is measured from; without it the task reads rows and does no more.
    """
    form, options = base.conversation, config.reward
    tokenizer = tokenizer.with_end() if form is None else tokenizer.with_specials(form.specials)

    def reference() -> Reference:
        assert load_base is not None
        return load_base(tokenizer)

    score = functools.cache(functools.partial(make_score, options, config.data))  # a function's file is run once

    def begin(model: GPT, rows: Sequence[Example], batch_size: int, runtime: Runtime, together: Together) -> Answers:
        writer = Writer(model, tokenizer, form, options, runtime, together)
        other = reference() if options.kl_weight else None
        return Answers(writer, score(), rows, batch_size, config.train.micro_batch_tokens, config.runtime.seed, other)

    def validate(model: GPT, rows: Sequence[Example], runtime: Runtime, together: Together) -> Validation:
        writer = Writer(model, tokenizer, form, options, runtime, together)
        micro_batch_tokens = config.train.micro_batch_tokens
        return reference().evaluate(lambda base: _validate(writer, score(), base, rows, micro_batch_tokens))

    return Task(
        tokenizer,
        ModelMetadata(conversation=form),
        _reader(config, tokenizer, form, max_tokens),
        lambda _: RewardObjective(options),
        validate,
        begin=begin,
        content=content(options),
    )


def _reader(config: FinetuneConfig, tokenizer: Tokenizer, form: Form | None, max_tokens: int) -> Reader:
    """Read a prompt, text or messages; nothing of it is learnt."""
    data, checks_answer = config.data, config.reward.needs_answer

    def read(row: Row) -> Example:
        if form is None:
            ids = [*tokenizer.bos_ids, *tokenizer.encode(row_prompt(row, data))]
        else:
            given = row.fields.get(data.prompt_field) if not data.prompt_template else None
            messages = (
                read_messages(given, f"{row.place}: {data.prompt_field}")
                if isinstance(given, list)
                else [Message(USER, row_prompt(row, data))]
            )
            ids = [*form.first(tokenizer), *form.prompt(messages, tokenizer)]
        if not ids:
            raise DataError(f"{row.place}: the prompt is empty and nothing begins it; write one or drop the row")
        if len(ids) >= max_tokens:
            raise DataError(
                f"{row.place}: the prompt has {len(ids)} tokens and the context holds {max_tokens}, so that no "
                "room is left for an answer; shorten it"
            )
        if checks_answer:
            right_answer(row.fields, data, row.place)
        return Example(row.place, ids, [False] * len(ids), None, False, row=row.fields)

    return read


class Answer(NamedTuple):
    """The text that the model wrote to a prompt."""

    ids: list[int]
    end_id: int | None  # the token that ended it
    text: str


@dataclass(frozen=True)
class Writer:
    """A model that answers prompts, in processes that do it together."""

    model: GPT
    tokenizer: Tokenizer
    form: Form | None
    options: RewardConfig
    runtime: Runtime
    together: Together

    def write(
        self, rows: Sequence[Example], samples: int, temperature: float, seed: Callable[[int], int]
    ) -> list[Answer]:
        """Return `samples` answers to each row, drawn by `seed` of its number."""
        ends = frozenset[int]() if self.form is None else self.form.stop_ids(self.tokenizer)
        most, begun = self.options.max_tokens, len(self.tokenizer.bos_ids)
        requests = []
        for number, row in enumerate(rows):
            room = self.model.config.context_length - len(row.ids)
            options = GenerateOptions(max_tokens=min(most, room), temperature=temperature, seed=seed(number))
            prompt, first = (row.ids[begun:], None) if self.form is None else (row.ids, ())
            requests += [Request(prompt, options, sample, stop_ids=ends, first=first) for sample in range(samples)]
        longest = min(self.model.config.context_length, max(len(row.ids) for row in rows) + most)

        def answers(part: Sequence[Request]) -> list[Answer]:
            engine = Engine(self.model, self.tokenizer, self.runtime, most=len(part))
            return [Answer(done.ids, done.end_id, done.text) for done in engine.run(part, capacity=longest)]

        with evaluating(self.model):
            return [Answer(*answer) for answer in self.together.spread(requests, answers)]

    def rewards(self, score: Score, rows: Sequence[Example], answers: Sequence[Answer]) -> list[float]:
        """Return the reward of each answer to a row. Code of a user's runs once for each, in one of the processes, for
        it may not say the same twice."""

        def scored(pairs: Sequence[tuple[Example, Answer]]) -> list[float]:
            return [score(answer.text, row) for row, answer in pairs]

        return self.together.spread(list(zip(rows, answers, strict=True)), scored, of_model=False)


def _answered(row: Example, answer: Answer) -> Example:
    """Return a prompt and an answer to it, which is learnt with the token that ended it."""
    written = [*answer.ids, *([] if answer.end_id is None else [answer.end_id])]
    return row._replace(ids=row.ids + written, learnt=[False] * len(row.ids) + [True] * len(written))


class Answers:
    """The batches of the task: what the model writes to the rows of a step, with the advantage of each answer.

    `carried` holds the answers in hand as tensors. A checkpoint keeps them where several steps learn from the same
    answers, which the model of then wrote.
    """

    def __init__(
        self,
        writer: Writer,
        score: Score,
        rows: Sequence[Example],
        batch_size: int,
        micro_batch_tokens: int,
        seed: int,
        reference: Reference | None,
    ) -> None:
        """Answer `batch_size` rows at a time; `reference` gives probabilities to stay near to."""
        self.writer, self.score, self.rows, self.reference = writer, score, rows, reference
        self.batch_size, self.micro_batch_tokens, self.seed = batch_size, micro_batch_tokens, seed
        self.options = writer.options
        self.carried: dict[str, Tensor] = {}

    def __call__(self, step: int) -> Step:
        """Return the batches of optimizer step `step`, counted from 0; none where all rewards are alike, so that there
        is nothing to learn."""
        number = step // self.options.updates
        if not self.carried or int(self.carried["number"]) != number:
            self.carried.clear()
            self.carried |= self._write(number)
        micro_batches = [batch for batch in self._batches() if self.reference is not None or batch.values.any()]  # type: ignore[union-attr]
        return Step(len(self.carried["lengths"]) if micro_batches else 0, micro_batches)

    def facts(self, step: int) -> Record:
        """Return the means over the answers that step `step` learnt from, counted from 1."""
        assert int(self.carried["number"]) == (step - 1) // self.options.updates
        found = {"reward": self.carried["rewards"].mean().item()}
        found["answer_tokens"] = self.carried["learnt"].sum().item() / len(self.carried["lengths"])
        if "reference_log_p" in self.carried:
            found["kl_nats"] = k3(self.carried["written_log_p"], self.carried["reference_log_p"]).mean().item()
        return found

    def _write(self, number: int) -> dict[str, Tensor]:
        """Write the answers of so many batches later than the first."""
        rows = examples_of_step(self.rows, number, self.batch_size, self.seed)
        size = self.options.group_size
        answers = self.writer.write(rows, size, 1.0, lambda row: derived_seed(self.seed, "answers", number, row))
        asked = [row for row in rows for _ in range(size)]
        rewards = torch.tensor(self.writer.rewards(self.score, asked, answers), dtype=torch.float64)
        examples = [_answered(row, answer) for row, answer in zip(asked, answers, strict=True)]
        carried = {
            "number": torch.tensor(number),
            "ids": torch.tensor([index for example in examples for index in example.ids]),
            "learnt": torch.tensor([learnt for example in examples for learnt in example.learnt]),
            "lengths": torch.tensor([len(example.ids) for example in examples]),
            "rewards": rewards,
            "advantages": advantages(rewards.view(-1, size), self.options).flatten().float(),
        }
        if self.options.updates > 1 or self.reference:
            carried["written_log_p"] = self._log_p(self.writer.model, carried)
        if self.reference:
            carried["reference_log_p"] = self.reference.evaluate(lambda base: self._log_p(base, carried))
        return carried

    @torch.no_grad()
    def _log_p(self, model: GPT, carried: Mapping[str, Tensor]) -> Tensor:
        """Return the log-probability that a model gives each token of the answers."""
        found = []
        with evaluating(model):
            for batch in self._packed(carried):
                hidden = target_hidden(model, batch, self.writer.runtime)
                found += [part.cpu() for part in target_log_probabilities(model, batch, hidden)]
        return torch.cat(found)

    def _packed(self, carried: Mapping[str, Tensor]) -> list[Batch]:
        """Return the answers as micro-batches, each with its advantage."""
        lengths = carried["lengths"].tolist()
        parts = (torch.split(carried[name], lengths) for name in ("ids", "learnt"))
        examples = [
            Example(f"answer {number}", ids.tolist(), learnt.tolist(), None, False, value=value)
            for number, (ids, learnt, value) in enumerate(zip(*parts, carried["advantages"].tolist(), strict=True), 1)
        ]
        groups = group_by_tokens(examples, self.micro_batch_tokens, lambda example: example.tokens)
        return [pack(group) for group in groups]

    def _batches(self) -> list[Batch]:
        """Return the micro-batches with what older models gave their targets."""
        batches = self._packed(self.carried)
        counts = [int((batch.targets != IGNORE).sum()) for batch in batches]
        written, reference = (
            torch.split(self.carried[name], counts) if name in self.carried else [None] * len(counts)
            for name in ("written_log_p", "reference_log_p")
        )
        return [
            batch._replace(written_log_p=of_writer, reference_log_p=of_reference)
            for batch, of_writer, of_reference in zip(batches, written, reference, strict=True)
        ]


def advantages(rewards: Tensor, options: RewardConfig) -> Tensor:
    """Return the advantages of rewards (prompts, answers)."""
    ahead = rewards - rewards.mean(1, keepdim=True)
    return ahead / (rewards.std(1, keepdim=True) + STD_EPS) if options.loss == "grpo" else ahead


def k3(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    """Return an estimate, never below 0, of KL(model || reference) from tokens that the model drew (Schulman 2020)."""
    ahead = reference_log_p - log_p
    return ahead.exp() - ahead - 1


@dataclass(frozen=True)
class RewardObjective:
    """The loss of answers with their advantages."""

    options: RewardConfig

    def __call__(self, model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
        """Return the loss summed over the answers, a float32 scalar."""
        assert batch.values is not None
        answers = target_log_probabilities(model, batch, target_hidden(model, batch, runtime))
        log_p = torch.cat(answers)
        counts = torch.tensor([len(answer) for answer in answers], device=log_p.device)
        written = log_p.detach() if batch.written_log_p is None else batch.written_log_p.to(log_p.device)
        ahead = batch.values.to(log_p.device).repeat_interleave(counts)
        ratio, clip = (log_p - written).exp(), self.options.clip
        loss = -torch.minimum(ratio * ahead, ratio.clamp(1 - clip, 1 + clip) * ahead)
        if batch.reference_log_p is not None:
            loss = loss + self.options.kl_weight * k3(log_p, batch.reference_log_p.to(log_p.device))
        if self.options.loss == "dr_grpo":
            return loss.sum() / self.options.max_tokens
        return (loss / counts.repeat_interleave(counts)).sum()


@torch.inference_mode()
def _validate(
    writer: Writer, score: Score, reference: GPT, rows: Sequence[Example], micro_batch_tokens: int
) -> Validation:
    """Measure on held-out rows the reward of the likeliest answers, their length, and how far the model has gone from
    its base: KL(model || base) of a token of the answers."""
    answers = writer.write(rows, 1, 0.0, lambda _: 0)
    rewards = writer.rewards(score, rows, answers)
    examples = [_answered(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def nats_and_targets(group: Sequence[Example]) -> Tensor:
        batch = pack(group)
        hidden, others = (target_hidden(model, batch, writer.runtime) for model in (writer.model, reference))
        nats = float(divergence_nats(writer.model, hidden, reference, others).sum())
        return torch.tensor([nats, len(hidden)], dtype=torch.float64)

    groups = list(group_by_tokens(examples, micro_batch_tokens, lambda example: example.tokens))
    with evaluating(writer.model):
        parts = [found.tolist() for _, found in writer.together.compute(groups, nats_and_targets)]
    divergence, targets = map(sum, zip(*parts, strict=True))
    record = {
        "reward": sum(rewards) / len(rewards),
        "kl_nats": divergence / max(1.0, targets),
        "answer_tokens": sum(len(answer.ids) for answer in answers) / len(rows),
    }
    text = (
        f"validation reward {record['reward']:.4f}, {record['kl_nats']:.4f} nats per token from the base, answers of "
        f"{record['answer_tokens']:.1f} tokens"
    )
    return Validation(-record["reward"], record, text, f"validation reward {record['reward']:.3f}")
