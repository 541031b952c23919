"""A run file of fine-tuning as a job of the training loop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptcli.base.escape import escape
from gptcli.base.units import count
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.train import TrainConfig
from gptcli.data.batches import Step
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Together
from gptcli.model.gpt import GPT
from gptcli.tasks.task import WrittenBatches
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Job, Validation
from gptcli.train.step import Objective


def train_config(config: FinetuneConfig, rows: int, *, samples: bool) -> TrainConfig:
    """Return the settings of the loop, with steps in place of epochs."""
    tune = config.train
    batch_size = min(tune.batch_size, rows)
    updates = config.reward.updates if config.task == "reward" else 1
    steps = updates * max(1, math.ceil(tune.epochs * rows / batch_size))
    often = updates * max(1, round(rows / batch_size / tune.evals_per_epoch))
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        log_every_steps=tune.log_every_steps,
        eval_every_steps=often,
        save_every_steps=often,
        sample_every_steps=often if tune.sample_prompt and samples else 0,
        keep_checkpoints=tune.keep_checkpoints,
        sample_prompt=tune.sample_prompt,
        sample_tokens=tune.sample_tokens,
        tensorboard=tune.tensorboard,
    )


def tuning_job(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    train: TrainConfig,
    *,
    batches: Callable[[int], Step],
    objective: Objective,
    validate: Callable[[GPT, Together], Validation | None],
    data: tuple[str, str],
    content: dict[str, Any],
    metadata: ModelMetadata,
    sample: Callable[[GPT], str],
    written: WrittenBatches | None = None,
) -> Job:
    """Make a job of fine-tuning. `data`: how much there is, and what a batch is made of; `written`: the batches where
    the model itself writes them."""
    amount, unit = data
    return Job(
        command="finetune",
        origin=f"from {escape(config.base)}",
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
        sample=sample,
        description=(
            f"{amount}, {count(train.steps, 'step')} of {count(train.batch_size, unit)} "
            f"({config.train.epochs:.3g} epochs)"
        ),
        metadata=metadata,
        patience=config.train.patience,
        facts=written.facts if written else None,
        carried=written.carried if written and config.reward.updates > 1 else {},
        less_memory=f"lower train.micro_batch_tokens (it is {config.train.micro_batch_tokens}) or data.max_tokens",
    )
