"""Instructions: a completion, learnt after the prompt before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.base.errors import DataError
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.data.batches import IGNORE
from gptcli.data.example import Example, Reader, cut_example, named_by
from gptcli.data.packing import group_by_tokens, pack
from gptcli.data.rows import Row
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Together
from gptcli.device.runtime import Runtime
from gptcli.evaluate.scoring import batch_tokens
from gptcli.model.gpt import GPT, evaluating
from gptcli.tasks.task import Task
from gptcli.train.loss import next_token_nats
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Validation


def instruct(config: FinetuneConfig, tokenizer: Tokenizer, base: ModelMetadata, max_tokens: int) -> Task:
    """Make the task; a tokenizer without a token that ends an answer gets one."""
    tokenizer = tokenizer.with_end()
    metadata = ModelMetadata(conversation=base.conversation)
    reader = _reader(config.data, tokenizer, max_tokens)
    return Task(tokenizer, metadata, reader, lambda _: next_token_nats, validate_targets)


def _reader(data: RowsConfig, tokenizer: Tokenizer, max_tokens: int) -> Reader:
    """Read a prompt, and the completion that is learnt with the token that ends it."""

    def read(row: Row) -> Example:
        prompt, completion = row_prompt(row, data), row.text(data.completion_field, advice=named_by("completion_field"))
        if not completion.strip():
            raise DataError(f"{row.place}: the completion is empty, so nothing to learn; write it or drop the row")
        return completion_example(row.place, prompt, completion, tokenizer, max_tokens)

    return read


def completion_example(place: str, prompt: str, completion: str, tokenizer: Tokenizer, max_tokens: int) -> Example:
    """Return a prompt and its completion as an example, of which the completion is learnt."""
    before = [*tokenizer.bos_ids, *tokenizer.encode(prompt)]
    after = [*tokenizer.encode(completion), *tokenizer.eos_ids]
    return cut_example(place, before + after, [False] * len(before) + [True] * len(after), max_tokens)


def row_prompt(row: Row, data: RowsConfig) -> str:
    """Return the prompt of a row, of one field or several; where there is none, the advice is how they are joined."""
    if data.prompt_template:
        return row.filled(data.prompt_template)
    field = data.prompt_field
    if isinstance(row.fields.get(field), list):
        return row.text(field, advice="; conversations are of task chat")
    several = "or join several in data.prompt_template, such as {instruction}\\n\\n{input}"
    return row.text(field, advice=f"{named_by('prompt_field')}, {several}")


@torch.inference_mode()
def validate_targets(model: GPT, rows: Sequence[Example], runtime: Runtime, together: Together) -> Validation:
    """Measure the loss of what is learnt in held-out rows."""

    def nats_and_targets(group: list[Example]) -> Tensor:
        batch = pack(group)
        found = float(next_token_nats(model, batch, runtime)), int((batch.targets != IGNORE).sum())
        return torch.tensor(found, dtype=torch.float64)

    groups = group_by_tokens(rows, batch_tokens(on_cpu=runtime.on_cpu), lambda example: len(example.ids))
    with evaluating(model):
        sums = [numbers.tolist() for _, numbers in together.compute(groups, nats_and_targets)]
    loss = sum(nats for nats, _ in sums) / sum(targets for _, targets in sums)
    record = {"loss_nats": loss, "perplexity": math.exp(min(loss, 700.0))}
    return Validation(loss, record, f"validation loss {loss:.4f} nats per learnt token", f"validation loss {loss:.3f}")
