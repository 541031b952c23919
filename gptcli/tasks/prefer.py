"""Preferences: of two answers to a prompt, the one that people like better is to become the likelier one.

    dpo     -log sigmoid(beta (r_chosen - r_rejected)), r = log p(answer) - log p_base(answer)      Rafailov et al. 2023
    ipo     (r_chosen - r_rejected - 1 / (2 beta))^2, r per token                                   Azar et al. 2023
    simpo   -log sigmoid(beta (a_chosen - a_rejected) - margin), a = log p(answer) per token        Meng et al. 2024
    orpo    -a_chosen - beta log sigmoid(log odds_chosen - log odds_rejected), odds of exp(a)       Hong et al. 2024

The base is the reference of dpo and ipo: what it makes of every answer is computed once, before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.base.errors import DataError
from gptcli.config.finetune import FinetuneConfig, PreferConfig, RowsConfig
from gptcli.config.generate import GenerateOptions
from gptcli.data.batches import Batch
from gptcli.data.conversation import ASSISTANT, USER, Message
from gptcli.data.example import Example, Reader, named_by
from gptcli.data.messages import read_messages
from gptcli.data.packing import group_by_tokens, pack
from gptcli.data.rows import Row
from gptcli.data.template import Form
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import BY_ONE, Together
from gptcli.device.runtime import Runtime
from gptcli.evaluate.scoring import batch_tokens
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT, evaluating
from gptcli.tasks.chat import conversation_example
from gptcli.tasks.instruct import completion_example, row_prompt
from gptcli.tasks.task import LoadBase, Reference, Task
from gptcli.train.loss import divergence_nats, target_hidden, target_log_probabilities
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Validation

LONGEST_ANSWER = 128  # tokens that an answer of a validation may have


def prefer(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    base: ModelMetadata,
    max_tokens: int,
    load_base: LoadBase | None,
) -> Task:
    """Make the task: answers are turns of a conversation where the base has a form of it, else what follows a prompt.

    `load_base` gives the base, which validation compares with; without it the task reads rows and does no more.
    """
    form, options = base.conversation, config.prefer
    tokenizer = tokenizer.with_end() if form is None else tokenizer.with_specials(form.specials)
    objective = PreferenceObjective(options)

    def reference() -> Reference:
        assert load_base is not None
        return load_base(tokenizer)

    def prepare(rows: Sequence[Example], runtime: Runtime, together: Together) -> list[Example]:
        if options.loss not in ("dpo", "ipo"):
            return list(rows)
        return reference().evaluate(lambda base: with_reference(rows, base, runtime, together))

    def validate(model: GPT, rows: Sequence[Example], runtime: Runtime, together: Together) -> Validation:
        with evaluating(model):
            lengths = together.spread(
                rows[: options.answers], lambda part: _written_lengths(model, tokenizer, form, part, runtime)
            )
            return reference().evaluate(
                lambda base: _validate(model, base, objective, rows, runtime, together, lengths)
            )

    return Task(
        tokenizer,
        ModelMetadata(conversation=form),
        _reader(config.data, tokenizer, form, max_tokens),
        lambda _: objective,
        validate,
        prepare=prepare,
        by_example=True,
    )


def _reader(data: RowsConfig, tokenizer: Tokenizer, form: Form | None, max_tokens: int) -> Reader:
    """Read a prompt and two answers to it, text or messages; the answers are what is learnt."""
    names = {"chosen_field": data.chosen_field, "rejected_field": data.rejected_field}

    def read_text(row: Row) -> list[Example]:
        prompt, answers = row_prompt(row, data), [_answer(row, name, key) for key, name in names.items()]
        return [completion_example(row.place, prompt, answer, tokenizer, max_tokens) for answer in answers]

    def read_conversation(row: Row, form: Form) -> list[Example]:
        given = row.fields.get(data.prompt_field) if not data.prompt_template else row_prompt(row, data)
        both = [_conversation(row, given, name, key) for key, name in names.items()]
        shared = next(
            (number for number, (one, other) in enumerate(zip(*both, strict=False)) if one != other),
            min(map(len, both)),
        )
        return [conversation_example(row.place, messages, shared, form, tokenizer, max_tokens) for messages in both]

    def read(row: Row) -> Example:
        if form is None and any(isinstance(row.fields.get(name), list) for name in names.values()):
            raise DataError(
                f"{row.place}: the answers are messages and the base has no form of conversation; fine-tune it with "
                "task: chat first, or give answers as text"
            )
        chosen, rejected = read_text(row) if form is None else read_conversation(row, form)
        if chosen.ids == rejected.ids and not chosen.truncated:
            raise DataError(f"{row.place}: both answers are the same; drop the row")
        return chosen._replace(rejected=rejected, truncated=chosen.truncated or rejected.truncated)

    return read


def _answer(row: Row, name: str, key: str) -> str:
    answer = row.text(name, advice=named_by(key))
    if not answer.strip():
        raise DataError(f"{row.place}: {key.removesuffix('_field')} is empty; write it or drop the row")
    return answer


def _conversation(row: Row, given: Any, name: str, key: str) -> list[Message]:
    """Return a whole conversation: the prompt (text or messages) and an answer (text or messages), or an answer that
    begins with the prompt itself, as many collections have it."""
    answer = row.fields.get(name)
    if not isinstance(answer, list):
        answer = [{"role": ASSISTANT, "content": _answer(row, name, key)}]
    read = f"{row.place}: {name}"
    if answer and isinstance(answer[0], dict) and _is_assistant(answer[0]):
        if given is None:
            raise DataError(f"{row.place}: no prompt before the answers{named_by('prompt_field')}")
        before = given if isinstance(given, list) else [{"role": USER, "content": given}]
        answer = [*before, *answer]
    return read_messages(answer, read)


def _is_assistant(message: dict[str, Any]) -> bool:
    return message.get("role", message.get("from")) in (ASSISTANT, "gpt", "model")


@dataclass(frozen=True)
class PreferenceObjective:
    """The losses of pairs; a pair is two sequences of a packed batch, the better one first."""

    options: PreferConfig

    def __call__(self, model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
        """Return the loss summed over the pairs, a float32 scalar."""
        log_p = target_log_probabilities(model, batch, target_hidden(model, batch, runtime))
        return self.losses(self.rewards(log_p, batch)).sum()

    def rewards(self, log_p: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return what the loss compares of every answer, (pairs, 2): its log-probability, less that of the reference,
        or the log-probability of a token."""
        assert batch.values is not None
        sums = torch.stack([answer.sum() for answer in log_p])
        counts = torch.tensor([len(answer) for answer in log_p], device=sums.device)
        if self.options.loss in ("dpo", "ipo"):
            sums = sums - batch.values.to(sums.device)
        return (sums if self.options.loss == "dpo" else sums / counts).view(-1, 2)

    def losses(self, rewards: Tensor) -> Tensor:
        """Return the loss of each pair, (pairs,)."""
        chosen, rejected = rewards.unbind(1)
        beta = self.options.scale
        match self.options.loss:
            case "dpo":
                ahead, wrong = beta * (chosen - rejected), self.options.label_smoothing
                return -(1 - wrong) * F.logsigmoid(ahead) - wrong * F.logsigmoid(-ahead)
            case "ipo":
                return (chosen - rejected - 1 / (2 * beta)).square()
            case "simpo":
                return -F.logsigmoid(beta * (chosen - rejected) - self.options.simpo_margin)
            case "orpo":
                log_odds = [
                    a - torch.log(-torch.expm1(a)) for a in (chosen.clamp(max=-1e-6), rejected.clamp(max=-1e-6))
                ]
                return -chosen - beta * F.logsigmoid(log_odds[0] - log_odds[1])


def _groups(rows: Sequence[Example], runtime: Runtime) -> list[list[Example]]:
    return list(group_by_tokens(rows, batch_tokens(on_cpu=runtime.on_cpu), lambda example: example.tokens))


@torch.inference_mode()
def with_reference(
    rows: Sequence[Example], reference: GPT, runtime: Runtime, together: Together = BY_ONE
) -> list[Example]:
    """Return the pairs with the log-probability that the reference gives each answer."""

    def of_answers(group: Sequence[Example]) -> Tensor:
        batch = pack(group)
        log_p = target_log_probabilities(reference, batch, target_hidden(reference, batch, runtime))
        return torch.stack([answer.sum() for answer in log_p])

    found = []
    for group, values in together.compute(_groups(rows, runtime), of_answers):
        for pair, (chosen, rejected) in zip(group, values.view(-1, 2).tolist(), strict=True):
            assert pair.rejected is not None
            found.append(pair._replace(value=chosen, rejected=pair.rejected._replace(value=rejected)))
    return found


@torch.inference_mode()
def _validate(
    model: GPT,
    reference: GPT,
    objective: PreferenceObjective,
    rows: Sequence[Example],
    runtime: Runtime,
    together: Together,
    lengths: Sequence[int],
) -> Validation:
    """Measure on held-out pairs the loss, the share in which the better answer is ahead, by how much, and how far the
    model has gone from the reference: KL(model || reference) of a token of the answers."""

    def sums(group: Sequence[Example]) -> Tensor:
        batch = pack(group)
        hidden, others = target_hidden(model, batch, runtime), target_hidden(reference, batch, runtime)
        rewards = objective.rewards(target_log_probabilities(model, batch, hidden), batch)
        differences = rewards[:, 0] - rewards[:, 1]
        ahead = (differences > 0).sum() + 0.5 * (differences == 0).sum()
        margin = objective.options.scale * float(differences.sum())
        nats = divergence_nats(model, hidden, reference, others).sum()
        found = [float(objective.losses(rewards).sum()), float(ahead), margin, float(nats), len(hidden)]
        return torch.tensor(found, dtype=torch.float64)

    parts = [found.tolist() for _, found in together.compute(_groups(rows, runtime), sums)]
    loss, ahead, margin, divergence, targets = map(sum, zip(*parts, strict=True))
    pairs = len(rows)
    record = {"loss_nats": loss / pairs, "accuracy": ahead / pairs, "margin": margin / pairs}
    record["kl_nats"] = divergence / targets
    text = (
        f"validation loss {loss / pairs:.4f}, the better answer ahead in {ahead / pairs:.1%} of pairs, by "
        f"{margin / pairs:.3f}; {record['kl_nats']:.4f} nats per token from the base"
    )
    if lengths:
        record["answer_tokens"] = sum(lengths) / len(lengths)
        text += f"; answers of {record['answer_tokens']:.1f} tokens"
    return Validation(record["loss_nats"], record, text, f"validation accuracy {ahead / pairs:.3f}")


def _written_lengths(
    model: GPT, tokenizer: Tokenizer, form: Form | None, rows: Sequence[Example], runtime: Runtime
) -> list[int]:
    """Return how many tokens the model's own answers to the prompts of held-out pairs have, of LONGEST_ANSWER."""
    if not rows:  # where there are more processes than pairs
        return []
    engine = Engine(model, tokenizer, runtime, slots=len(rows))
    options = GenerateOptions(max_tokens=LONGEST_ANSWER, temperature=0.0)
    ends = frozenset[int]() if form is None else form.stop_ids(tokenizer)
    prompts = [row.ids[: row.learnt.index(True)] for row in rows]
    requests = [Request(prompt, options, stop_ids=ends, first=()) for prompt in prompts]
    longest = max(map(len, prompts)) + LONGEST_ANSWER
    return [len(completion.ids) for completion in engine.run(requests, capacity=longest)]
