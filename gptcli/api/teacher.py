"""The teacher that a run file names, looked at before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from gptcli.api.open_model import load
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.config.distill import DistillConfig
from gptcli.data.tokenizer import Tokenizer
from gptcli.model.gpt import GPT
from gptcli.tasks.distill import DistillObjective, Teacher
from gptcli.tasks.task import Reference, WholeReference
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import read_config
from gptcli.train.run import Job
from gptcli.train.weights import identity


def find_teacher(options: DistillConfig, tokenizer: Tokenizer, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Return the teacher of a student with this tokenizer, to be loaded onto a device; DataError where it has another
    one."""
    checkpoint = find_checkpoint(options.teacher)
    name = escape(str(checkpoint))
    if Tokenizer.load(checkpoint).sha256 != tokenizer.sha256:
        own = escape(str(checkpoint / "tokenizer.json"))
        raise DataError(
            f"distill.teacher: {name} has another tokenizer, so that its tokens are not the student's; give it "
            f"the same, -s tokenizer.path={own}, or learn from text that the teacher writes, gptcli generate"
        )
    if tokenizer.end_of_text is None:
        raise DataError(f"distill.teacher: {name} has no <|endoftext|>, with which every window begins")

    def open_teacher() -> GPT:
        return load(checkpoint, device=device, dtype=dtype)[0]

    return Teacher(
        options,
        identity(checkpoint),
        read_config(checkpoint),
        tokenizer.vocab_size,
        tokenizer.end_of_text,
        open_teacher,
    )


def along(teacher: Teacher, row_tokens: int, refer: Callable[[GPT], Reference] = WholeReference) -> DistillObjective:
    """Return the objective of a run whose rows the teacher reads, too; ConfigError where they are too long for it.
    `refer` says how the processes have it."""
    if row_tokens > teacher.config.context_length:
        raise ConfigError(
            f"distill.teacher: reads at most {teacher.config.context_length} tokens at once, and the student's "
            f"rows have up to {row_tokens}; lower model.context_length (in fine-tuning data.max_tokens)"
        )
    return DistillObjective(teacher, refer(teacher.load()))


def distilled(job: Job, objective: DistillObjective) -> Job:
    """Return a job that learns from a teacher, which is part of what identifies it."""
    teacher = objective.teacher
    run_file = {**job.run_file, "content": {**job.run_file["content"], "teacher": teacher.identity}}
    told = f"{job.description}, taught by {escape(str(teacher.options.teacher))}"
    return dataclasses.replace(job, objective=objective, run_file=run_file, description=told)
