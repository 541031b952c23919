"""The tasks of fine-tuning as jobs: what is minimised, and how it is measured on held-out rows."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.data import DataConfig, TokenizerConfig
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import TrainConfig
from gptcli.data.batches import IGNORE, Step, TokenBatches
from gptcli.data.packing import ExampleBatches, group_by_tokens, pack
from gptcli.data.prepared import prepare_data
from gptcli.data.shards import TokenArray, near, read_index
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import Runtime
from gptcli.evaluate.classification import Labelled
from gptcli.evaluate.classification_head import label_probabilities
from gptcli.evaluate.scoring import batch_tokens
from gptcli.model.gpt import GPT, evaluating
from gptcli.tasks.classify import LabelObjective
from gptcli.tasks.dataset import ExampleSet
from gptcli.tasks.text import validate_text, write_sample
from gptcli.train.loop import next_token_nats
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Job, Validation
from gptcli.train.step import Objective


def text_job(
    config: FinetuneConfig,
    base: Path,
    tokenizer: Tokenizer,
    model: ModelConfig,
    metadata: ModelMetadata,
    identity: list[str],
    runtime: Runtime,
    report: Report,
) -> Job:
    """Going on with pretraining on more text; a row is a window."""
    data = config.data
    text = DataConfig(
        train=data.train,
        validation=data.validation,
        validation_fraction=data.validation_fraction,
        field=data.text_field,
    )
    given = TokenizerConfig(path=str(base / "tokenizer.json"))
    _, prepared = prepare_data(text, given, report)
    if tokenizer.end_of_text is None:
        raise DataError(f"{shown(str(base))}: its tokenizer has no <|endoftext|>, with which every window begins")
    tokens, held_out = TokenArray(prepared, "train"), TokenArray(prepared, "validation")
    window = min(data.max_tokens or model.context_length, model.context_length)
    rows = max(1, len(tokens) // window - 1)
    train = train_config(config, rows)
    batches = TokenBatches(
        near(tokens, runtime.device),
        context_length=window,
        batch_size=train.batch_size,
        micro_batch_size=_divisor(train.batch_size, config.train.micro_batch_tokens // window),
        first_token=tokenizer.end_of_text,
        seed=config.runtime.seed,
    )
    validation = held_out.read(0, len(held_out)).tolist()
    return _job(
        config,
        tokenizer,
        train,
        batches=batches,
        objective=next_token_nats,
        validate=lambda model: validate_text(model, tokenizer, validation, runtime),
        data=(count(len(tokens), "token"), "window"),
        content={"base": identity, "inputs": [fact["sha256"] for fact in read_index(prepared)["inputs"]]},
        metadata=metadata,
        runtime=runtime,
    )


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`, at least 1."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= max(1, most))


def train_config(config: FinetuneConfig, rows: int) -> TrainConfig:
    """The loop's settings: steps for epochs."""
    tune = config.train
    batch_size = min(tune.batch_size, rows)
    steps = max(1, math.ceil(tune.epochs * rows / batch_size))
    often = max(1, round(rows / batch_size / tune.evals_per_epoch))
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        log_every_steps=tune.log_every_steps,
        eval_every_steps=often,
        save_every_steps=often,
        sample_every_steps=often if tune.sample_prompt and config.task != "classify" else 0,
        keep_checkpoints=tune.keep_checkpoints,
        sample_prompt=tune.sample_prompt,
        sample_tokens=tune.sample_tokens,
        tensorboard=tune.tensorboard,
    )


def rows_job(
    config: FinetuneConfig, examples: ExampleSet, metadata: ModelMetadata, identity: list[str], runtime: Runtime
) -> Job:
    """Learning from rows. `identity` are the hashes of the base."""
    rows, tokenizer = examples.train, examples.tokenizer
    train = train_config(config, len(rows))
    classify = config.task == "classify"
    return _job(
        config,
        tokenizer,
        train,
        batches=ExampleBatches(
            rows,
            batch_size=train.batch_size,
            micro_batch_tokens=config.train.micro_batch_tokens,
            seed=config.runtime.seed,
            token_dropout=config.classify.token_dropout if classify else 0.0,
            blank=tokenizer.end_of_text or 0,
        ),
        objective=_objective(config, examples),
        validate=functools.partial(
            validate_labels if classify else validate_examples, examples=examples, runtime=runtime
        ),
        data=(count(len(rows), "row"), "row"),
        content={"base": identity, "tokenizer": tokenizer.sha256, "inputs": examples.sha256},
        metadata=metadata,
        runtime=runtime,
    )


def _job(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    train: TrainConfig,
    *,
    batches: Callable[[int], Step],
    objective: Objective,
    validate: Callable[[GPT], Validation | None],
    data: tuple[str, str],
    content: dict[str, Any],
    metadata: ModelMetadata,
    runtime: Runtime,
) -> Job:
    """What both kinds of data share. `data`: how much there is, and what a batch is made of."""
    amount, unit = data
    return Job(
        command="finetune",
        origin=f"from {shown(config.base)}",
        config=config,
        run_file={**dataclasses.asdict(config), "content": content},
        run_dir=Path(config.run_dir),
        optim=config.optim,
        train=train,
        seed=config.runtime.seed,
        tokenizer=tokenizer,
        batches=batches,
        objective=objective,
        validate=validate,
        sample=lambda model: write_sample(model, tokenizer, runtime, train, seed=config.runtime.seed),
        description=(
            f"{amount}, {count(train.steps, 'step')} of {count(train.batch_size, unit)} "
            f"({config.train.epochs:.3g} epochs)"
        ),
        metadata=metadata,
        patience=config.train.patience,
        less_memory=f"lower train.micro_batch_tokens (it is {config.train.micro_batch_tokens}) or data.max_tokens",
    )


def _objective(config: FinetuneConfig, examples: ExampleSet) -> Objective:
    if config.task != "classify":
        return next_token_nats
    return LabelObjective(
        _class_weights(config, examples),
        config.classify.label_smoothing,
        config.classify.every_token_weight,
        config.classify.text_loss_weight,
        examples.tokenizer.end_of_text,
    )


def _class_weights(config: FinetuneConfig, examples: ExampleSet) -> Tensor:
    """(labels,), 1 on the average of the training rows; 0 for a label whose rows are all held out, if balanced."""
    labels = torch.tensor([row.label for row in examples.train])
    counts = torch.bincount(labels, minlength=len(examples.metadata.labels))
    if config.classify.class_weights == "none":
        return torch.ones(len(counts))
    there = counts > 0
    return torch.where(there, len(labels) / (there.sum() * counts.clamp_min(1)), 0.0)


@torch.inference_mode()
def validate_labels(model: GPT, *, examples: ExampleSet, runtime: Runtime) -> Validation | None:
    """Accuracy and macro-F1 on the held-out rows, None where there are none."""
    if not examples.validation:
        return None
    with evaluating(model):
        rows = [row.ids for row in examples.validation]
        probabilities = label_probabilities(model, rows, runtime, pooling=examples.metadata.pooling)
    wanted = torch.tensor([row.label for row in examples.validation])
    confidence, given = (found.numpy() for found in probabilities.double().max(-1))
    accuracy, macro_f1 = Labelled(examples.metadata.labels, wanted.numpy(), given, confidence).accuracy_and_macro_f1()
    loss = float(-probabilities.gather(1, wanted[:, None]).clamp_min(1e-30).log().mean())
    record = {"loss_nats": loss, "accuracy": accuracy, "macro_f1": macro_f1}
    text = f"validation accuracy {accuracy:.4f}, macro-F1 {macro_f1:.4f}, loss {loss:.4f} nats"
    return Validation(1 - macro_f1, record, text, f"validation macro-F1 {macro_f1:.3f}")


@torch.inference_mode()
def validate_examples(model: GPT, *, examples: ExampleSet, runtime: Runtime) -> Validation | None:
    """Loss of what is learnt in the held-out rows, None where there are none."""
    if not examples.validation:
        return None
    nats = targets = 0.0
    most = batch_tokens(on_cpu=runtime.on_cpu)
    with evaluating(model):
        for group in group_by_tokens(examples.validation, most, lambda example: len(example.ids)):
            batch = pack(group)
            nats += float(next_token_nats(model, batch, runtime))
            targets += int((batch.targets != IGNORE).sum())
    loss = nats / targets
    record = {"loss_nats": loss, "perplexity": math.exp(min(loss, 700.0))}
    return Validation(loss, record, f"validation loss {loss:.4f} nats per learnt token", f"validation loss {loss:.3f}")
