"""Text: pretraining, or going on with it, measured by the loss on held-out text and shown by samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.units import count
from gptcli.config.data import DataConfig
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.config.train import TrainConfig
from gptcli.data.batches import TokenBatches
from gptcli.data.shards import TokenArray, near, read_index
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import BY_ONE, Together
from gptcli.device.runtime import Runtime
from gptcli.evaluate.perplexity import score_documents
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT
from gptcli.tasks.job import train_config, tuning_job
from gptcli.train.loss import next_token_nats
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Job, Validation


def text_job(
    config: FinetuneConfig,
    base: Path,
    prepared: Path,
    tokenizer: Tokenizer,
    model: ModelConfig,
    metadata: ModelMetadata,
    identity: list[str],
    runtime: Runtime,
) -> Job:
    """Make the job of going on with pretraining on more text, `prepared` with the base's tokenizer; a row is a
    window."""
    if tokenizer.end_of_text is None:
        raise DataError(f"{escape(str(base))}: its tokenizer has no <|endoftext|>, with which every window begins")
    data = config.data
    tokens, held_out = TokenArray(prepared, "train"), TokenArray(prepared, "validation")
    window = min(data.max_tokens or model.context_length, model.context_length)
    rows = max(1, len(tokens) // window - 1)
    train = train_config(config, rows, samples=True)
    batches = TokenBatches(
        near(tokens, runtime.device),
        context_length=window,
        batch_size=train.batch_size,
        micro_batch_size=_divisor(train.batch_size, config.train.micro_batch_tokens // window),
        first_token=tokenizer.end_of_text,
        seed=config.runtime.seed,
        goldfish=config.loss.goldfish,
    )
    validation = held_out.read(0, len(held_out)).tolist()
    return tuning_job(
        config,
        tokenizer,
        train,
        batches=batches,
        objective=next_token_nats,
        validate=lambda model, together: validate_text(model, tokenizer, validation, runtime, together),
        data=(count(len(tokens), "token"), "window"),
        content={"base": identity, "inputs": [fact["sha256"] for fact in read_index(prepared)["inputs"]]},
        metadata=metadata,
        sample=lambda model: write_sample(model, tokenizer, runtime, train, seed=config.runtime.seed),
    )


def text_data(data: RowsConfig) -> DataConfig:
    """Return how the inputs of a fine-tuning run are read as text."""
    return DataConfig(
        train=data.train,
        validation=data.validation,
        validation_fraction=data.validation_fraction,
        field=data.text_field,
        encoding=data.encoding,
        errors=data.errors,
        on_bad_row=data.on_bad_line,
    )


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of `number` that is at most `most`, at least 1."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= max(1, most))


def validate_texts(
    model: GPT, tokenizer: Tokenizer, texts: Mapping[str, list[int]], runtime: Runtime, together: Together = BY_ONE
) -> Validation | None:
    """Validate several texts by name as validate_text does one; each counts alike, and the record has each of them."""
    found = {name: validate_text(model, tokenizer, ids, runtime, together) for name, ids in texts.items()}
    measured = {name: validation for name, validation in found.items() if validation is not None}
    if len(measured) < 2:
        return next(iter(measured.values()), None)
    fields = {field: [each.record[field] for each in measured.values()] for field in ("loss_nats", "bits_per_byte")}
    record: dict[str, Any] = {field: fmean(values) for field, values in fields.items()}
    record["perplexity"] = math.exp(min(record["loss_nats"], 700.0))
    record["sources"] = {name: {field: each.record[field] for field in fields} for name, each in measured.items()}
    text = ", ".join(f"{escape(name)} {each.record['bits_per_byte']:.4f}" for name, each in measured.items())
    bits = record["bits_per_byte"]
    text = f"validation loss {record['loss_nats']:.4f} nats, {bits:.4f} bits per byte ({text})"
    return Validation(bits, record, text, f"validation {bits:.3f} bits/byte")


def validate_text(
    model: GPT, tokenizer: Tokenizer, ids: list[int], runtime: Runtime, together: Together = BY_ONE
) -> Validation | None:
    """Measure the loss on held-out text, None where there is none.

    Without overlap: as many forward passes as tokens need, the same measure at every step of every run.
    """
    if not ids:
        return None
    stride = model.config.context_length
    (score,) = score_documents(model, tokenizer, [ids], runtime, stride=stride, together=together)
    if not score.tokens:
        return None
    record = {"loss_nats": score.loss_nats, "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
    text = f"validation loss {score.loss_nats:.4f} nats, {score.bits_per_byte:.4f} bits per byte"
    return Validation(score.bits_per_byte, record, text, f"validation {score.bits_per_byte:.3f} bits/byte")


def write_sample(model: GPT, tokenizer: Tokenizer, runtime: Runtime, config: TrainConfig, *, seed: int) -> str:
    """Write on from the run's sample prompt; the prompt is included."""
    engine = Engine(model, tokenizer, runtime, slots=1)
    options = GenerateOptions(max_tokens=config.sample_tokens, seed=seed, truncate="left")
    prompt = engine.fit(tokenizer.encode(config.sample_prompt), options)
    capacity = len(prompt) + 1 + config.sample_tokens
    (completion,) = engine.run([Request(prompt, options)], capacity=capacity)
    return config.sample_prompt + completion.text
