"""Fine-tune a base checkpoint on rows, into a run directory."""

from __future__ import annotations

import dataclasses
import functools
import gc
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from gptcli.api.open_model import load
from gptcli.api.teacher import along, distilled, find_teacher
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config import yaml_file, yaml_write
from gptcli.config.data import TokenizerConfig
from gptcli.config.finetune import FinetuneConfig
from gptcli.data.batches import derived_seed
from gptcli.data.prepared import check_on_machine, prepare_data
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Processes, Together, joined
from gptcli.device.runtime import Runtime, keep_freed_memory, make_runtime, return_freed_memory
from gptcli.interop.peft import AdapterWeights
from gptcli.model.gpt import GPT
from gptcli.model.lora import add_adapters, keep_frozen_in
from gptcli.observe.tensorboard import check_installed, recording
from gptcli.tasks.dataset import read_examples, rows_job
from gptcli.tasks.task import Reference, WholeReference
from gptcli.tasks.text import text_data, text_job
from gptcli.train.checkpoint_paths import checkpoints, find_checkpoint, step_directory
from gptcli.train.initial import sharded_state
from gptcli.train.metadata import Adapter, ModelMetadata, read_config, read_metadata
from gptcli.train.optimizers import make_optimizers
from gptcli.train.resume import as_it_began
from gptcli.train.run import Job, Outcome, Training
from gptcli.train.run_directory import check_vacant, claimed, clear
from gptcli.train.shard_choice import is_sharded
from gptcli.train.sharded import Sharded
from gptcli.train.state import TrainState
from gptcli.train.weights import WholeWeights, identity, weights_sha256


def finetune(
    config: FinetuneConfig, *, resume: bool = False, force: bool = False, allow_code: bool = False, report: Report
) -> Outcome:
    """Go on from a base checkpoint with the rows of a task, or from the newest whole checkpoint of the run.

    `allow_code`: run the Python code that the run file names; ConfigError where it names some without.
    """
    run_dir = Path(config.run_dir)
    if config.reward.function is not None and config.task == "reward" and not allow_code:
        raise ConfigError(
            f"reward.function: {escape(config.reward.function)} is code, which is run only with --allow-code (from "
            "Python: allow_code=True); look at it first"
        )
    base = find_checkpoint(config.base)
    with joined(config.parallel, config.runtime) as processes, processes.held_by_first(claimed(run_dir)):
        report = report if processes.is_first else Report()
        if processes.is_first:
            config = _checked(config, base, resume=resume, force=force)
        text = processes.share(yaml_write.dump(config) if processes.is_first else None)
        if not processes.is_first:
            config = yaml_file.parse(FinetuneConfig, text, name="run.yaml").value
        runtime = make_runtime(config.runtime, local_rank=processes.local_rank)
        models = _Models(processes, runtime, _is_sharded(config, base, runtime, processes))
        if runtime.on_cpu:
            (return_freed_memory if models.sharded else keep_freed_memory)()
        model, tokenizer = models.load(base)
        if config.train.frozen_blocks > (blocks := len(model.blocks)):
            raise ConfigError(
                f"train.frozen_blocks: {config.train.frozen_blocks}, but the base has {count(blocks, 'block')}"
            )
        job = _job(config, base, model, tokenizer, models, report)
        if config.distill is not None:
            dtype = torch.float32 if models.sharded else runtime.dtype
            teacher = find_teacher(config.distill, job.tokenizer, models.device, dtype)
            rows = min(config.data.max_tokens or model.config.context_length, model.config.context_length)
            job = distilled(job, along(teacher, rows, models.refer))
        if config.optim.warmup_steps >= job.train.steps:
            raise ConfigError(f"optim.warmup_steps: must be below the {count(job.train.steps, 'step')} of the run")
        _tell_of_idle(config, job, processes, report)
        prepare_model(model, config, job.tokenizer, job.metadata)
        if force and not resume and processes.is_first:
            clear(run_dir)
        job, state = models.begin(model, config, job)
        board = recording(run_dir / "tensorboard", report.warning, wanted=config.train.tensorboard)
        return Training(job, runtime, report, processes=processes, also_record=board).go(state, resume=resume)


@dataclass(frozen=True)
class _Models:
    """The way in which the processes of a run have its models: each has all of them, or a part of each."""

    processes: Processes
    runtime: Runtime
    sharded: bool

    @property
    def device(self) -> torch.device:
        """Return where weights are loaded: of a file on a CPU, only rows that are kept are read."""
        return torch.device("cpu") if self.sharded else self.runtime.device

    def load(self, base: Path) -> tuple[GPT, Tokenizer]:
        return load(base, device=self.device, dtype=torch.float32)

    def refer(self, model: GPT) -> Reference:
        """Return a model that is not trained."""
        if self.sharded:
            return Sharded(model.requires_grad_(False), self.processes, self.runtime)
        return WholeReference(model)

    def load_reference(self, base: Path, tokenizer: Tokenizer) -> Reference:
        """Return the base to compare with, grown to a tokenizer."""
        gc.collect()  # FSDP's cycles hold the one of the validation before
        model, _ = self.load(base)
        model.grow(tokenizer.vocab_size)
        return self.refer(model.eval())

    def begin(self, model: GPT, config: FinetuneConfig, job: Job) -> tuple[Job, TrainState]:
        """Return the job and its state at step 0."""
        adapter, step_tokens = job.metadata.adapter, config.train.batch_size * model.config.context_length
        weights = AdapterWeights(config.lora, adapter.base_path) if config.lora and adapter else WholeWeights()
        if not self.sharded:
            if config.lora is not None:
                keep_frozen_in(model, self.runtime.dtype)
            optimizers = make_optimizers(model, config.optim, step_tokens=step_tokens, dtype=self.runtime.dtype)
            return job, TrainState(model, optimizers, weights=weights, processes=self.processes, carried=job.carried)
        parts = Sharded(model, self.processes, self.runtime)
        state = sharded_state(parts, config.optim, self.runtime, step_tokens=step_tokens, weights=weights)
        state.carried = job.carried
        batches = job.batches
        if config.task == "reward":  # all write at the same time, each with its part of the model
            job = dataclasses.replace(job, batches=lambda step: parts.evaluate(lambda _: batches(step)))
        return job, state


def _is_sharded(config: FinetuneConfig, base: Path, runtime: Runtime, processes: Processes) -> bool:
    """Return whether the model is sharded. One process decides for all."""
    sharded = None
    if processes.is_first:
        frozen = config.lora is not None
        sharded = is_sharded(read_config(base), config.optim, runtime.device, processes, frozen=frozen)
    return bool(processes.share(sharded))


def _checked(config: FinetuneConfig, base: Path, *, resume: bool, force: bool) -> FinetuneConfig:
    """Return the run as it began; an error where it may not begin or go on in its directory."""
    run_dir = Path(config.run_dir)
    check_vacant(run_dir, resume=resume, force=force)
    if force:
        fsio.check_apart(run_dir, [base])
    if resume and (run_dir / "run.yaml").is_file() and checkpoints(run_dir):
        config = as_it_began(config, run_dir / "run.yaml")
    check_installed(wanted=config.train.tensorboard)
    return config


def _tell_of_idle(config: FinetuneConfig, job: Job, processes: Processes, report: Report) -> None:
    """Warn where a step has fewer micro-batches than processes, which would wait for each other."""
    if processes.alone or config.task == "reward":
        return
    micro_batches = list(job.batches(0).micro_batches)
    if len(micro_batches) < processes.count:
        tokens = max(1, sum(batch.inputs.numel() for batch in micro_batches) // (2 * processes.count))
        report.warning(
            f"micro-batches of a step: {len(micro_batches)}, processes: {processes.count}, so that some wait; set "
            f"train.micro_batch_tokens={tokens} (it is {config.train.micro_batch_tokens})"
        )


def _job(config: FinetuneConfig, base: Path, model: GPT, tokenizer: Tokenizer, models: _Models, report: Report) -> Job:
    """Return the run as a job, its data read and looked at."""
    metadata, base_identity = read_metadata(base), identity(base)
    adapter = _adapter(config, base)
    if config.task == "text":
        metadata = dataclasses.replace(metadata, labels=(), adapter=adapter)
        prepared = _prepared(config, base, models.processes, report)
        return text_job(config, base, prepared, tokenizer, model.config, metadata, base_identity, models.runtime)

    load_base = functools.partial(models.load_reference, base)
    examples = read_examples(config, tokenizer, metadata, model.config, load_base)
    for line in examples.notes():
        report.message(line)
    return rows_job(
        config,
        examples,
        model,
        dataclasses.replace(examples.task.metadata, adapter=adapter, origin=metadata.origin),
        base_identity,
        models.runtime,
        Together(models.processes, lockstep=models.sharded),
    )


def _prepared(config: FinetuneConfig, base: Path, processes: Processes, report: Report) -> Path:
    """Prepare the text of task: text, which one process reads, for it may come from a pipe -> the directory."""
    name = None
    if processes.is_first:
        given = TokenizerConfig(path=str(base / "tokenizer.json"))
        _, prepared = prepare_data(text_data(config.data), given, report)
        name = os.path.abspath(prepared)
    found = Path(processes.share(name))
    check_on_machine(found, processes.rank)
    return found


def _adapter(config: FinetuneConfig, base: Path) -> Adapter | None:
    """Return what a run with LoRA says of its base; DataError where that is an adapter, without weights to hold
    against."""
    if config.lora is None:
        return None
    if read_metadata(base).adapter is not None:
        raise DataError(f"{escape(str(base))}: is an adapter; make a whole model of it first, gptcli merge")
    directory = step_directory(Path(config.run_dir), 0)
    return Adapter(os.path.relpath(base.resolve(), directory.resolve()), weights_sha256(base))


def prepare_model(model: GPT, config: FinetuneConfig, tokenizer: Tokenizer, metadata: ModelMetadata) -> None:
    """Add to the base what the task needs, and freeze what is not trained. ConfigError where the run file asks too
    much."""
    assert model.config.vocab_size is not None
    grows = tokenizer.vocab_size > model.config.vocab_size
    model.grow(tokenizer.vocab_size)
    labels = len(metadata.labels)
    model.label_head = None  # a base's own is of its task
    if labels:
        if config.lora is None and not config.train.frozen_blocks:
            model.level_embedding()
        model.add_label_head(labels, torch.Generator().manual_seed(derived_seed(config.runtime.seed, "labels")))
    model.activation_checkpointing = config.runtime.activation_checkpointing
    if config.train.dropout is not None or config.task == "reward":
        model.set_dropout(config.train.dropout or 0.0)
    if config.lora is not None:
        add_adapters(model, config.lora, torch.Generator().manual_seed(derived_seed(config.runtime.seed, "adapters")))
        for head in (model.label_head, *((model.embedding, model.head) if grows else ())):
            if head is not None:
                head.requires_grad_(True)
    frozen = config.train.frozen_blocks
    if frozen:
        for part in (model.embedding, model.bigrams, *model.blocks[:frozen]):
            if part is not None:
                part.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(f"train.frozen_blocks: {frozen} leave nothing to train; freeze fewer")
