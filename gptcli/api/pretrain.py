"""Train a model from scratch as a run file says, into a run directory with checkpoints."""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.api.teacher import along, distilled, find_teacher
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.places import cache_directory
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config import yaml_file, yaml_write
from gptcli.config.data import DataConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.batches import TokenBatches, TokenRows, derived_seed
from gptcli.data.mixture import MixedBatches
from gptcli.data.prepared import check_on_machine, prepare_parts
from gptcli.data.shards import ResidentTokens, TokenArray, is_prepared, near, read_index
from gptcli.data.taught import TaughtTokens
from gptcli.data.text import TextOptions, find_sources
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Processes, joined
from gptcli.device.runtime import Runtime, keep_freed_memory, make_runtime, return_freed_memory
from gptcli.model.gpt import GPT
from gptcli.observe.tensorboard import check_installed, recording
from gptcli.tasks.distill import DistillObjective, keep_what_it_says, wanted_tokenizer
from gptcli.tasks.text import validate_texts, write_sample
from gptcli.train.autoconfig import AutoConfig, step_seconds, training_flops_per_second
from gptcli.train.checkpoint_paths import checkpoints
from gptcli.train.deadline import Deadline
from gptcli.train.initial import new_state
from gptcli.train.loss import next_token_nats
from gptcli.train.micro_batches import micro_batch_rows
from gptcli.train.run import Job, Outcome, Training
from gptcli.train.run_directory import check_vacant, claimed, clear
from gptcli.train.shard_choice import is_sharded


def pretrain(
    config: PretrainConfig,
    *,
    resume: bool = False,
    force: bool = False,
    report: Report,
    origins: Mapping[str, str] | None = None,
    started: float | None = None,
) -> Outcome:
    """Train a model from scratch, or go on from the newest whole checkpoint of the run directory.

    `origins`: where the values come from, as configfile tells; without it those that have their defaults count as left
    open. `started`: the moment on time.monotonic()'s clock from which train.budget counts, default now.
    """
    started = time.monotonic() if started is None else started
    run_dir = Path(config.run_dir)
    with joined(config.parallel, config.runtime) as processes, processes.held_by_first(claimed(run_dir)):
        report = report if processes.is_first else Report()
        begun = None
        if processes.is_first:
            begun = _begin(config, processes, report, origins or {}, started, resume=resume, force=force)
        begun = _shared(begun, processes)
        config = begun.config
        runtime = make_runtime(config.runtime, local_rank=processes.local_rank)
        tokenizer = begun.tokenizer
        taught = begun.taught or _taught(config, tokenizer, begun.prepared, runtime, report)
        batches = _batches(config, tokenizer, begun.prepared, runtime, processes, taught.kept)
        _check_shares(config, batches, processes)
        job = _job(config, tokenizer, begun.prepared, batches, runtime, report)
        if taught.objective is not None:
            job = distilled(job, taught.objective)
        if runtime.on_cpu:
            (return_freed_memory if begun.sharded else keep_freed_memory)()
        state = new_state(_model_config(config, tokenizer), config, runtime, processes, sharded=begun.sharded)
        if force and not resume and processes.is_first:
            clear(run_dir)
        board = recording(run_dir / "tensorboard", report.warning, wanted=config.train.tensorboard)
        training = Training(job, runtime, report, begun.deadline, processes=processes, also_record=board)
        return training.go(state, resume=resume)


@dataclass(frozen=True)
class _Begun:
    """The findings and choices of one process before the steps, for all."""

    config: PretrainConfig
    tokenizer: Tokenizer
    prepared: Sequence[Path]
    deadline: Deadline | None = None
    taught: _FromTeacher | None = None
    sharded: bool = False


@dataclass(frozen=True)
class _FromTeacher:
    """The part that a teacher has in a run, if there is one."""

    objective: DistillObjective | None = None
    kept: Sequence[TaughtTokens] = ()  # for each prepared directory; none: the teacher reads along


def _taught(
    config: PretrainConfig, tokenizer: Tokenizer, prepared: Sequence[Path], runtime: Runtime, report: Report
) -> _FromTeacher:
    """Open the teacher, and have it read the text before the run where the run file allows it the room."""
    if config.distill is None:
        return _FromTeacher()
    teacher = find_teacher(config.distill, tokenizer, runtime.device, runtime.dtype)
    kept = keep_what_it_says(teacher, prepared, cache_directory(config.data.cache_dir), runtime, report)
    if kept is None:
        return _FromTeacher(along(teacher, config.model.context_length))
    return _FromTeacher(DistillObjective(teacher, None), kept)


def _shared(begun: _Begun | None, processes: Processes) -> _Begun:
    """Return what the first process found; the clock stays with it."""
    if begun is not None:
        processes.share([yaml_write.dump(begun.config), begun.sharded, *map(os.path.abspath, begun.prepared)])
        return begun
    text, sharded, *prepared = processes.share()
    for name in prepared:
        check_on_machine(Path(name), processes.rank)
    config = yaml_file.parse(PretrainConfig, text, name="run.yaml").value
    return _Begun(config, Tokenizer.load(prepared[0]), tuple(map(Path, prepared)), sharded=sharded)


def _begin(
    config: PretrainConfig,
    processes: Processes,
    report: Report,
    origins: Mapping[str, str],
    started: float,
    *,
    resume: bool,
    force: bool,
) -> _Begun:
    """Check the directory, prepare the text and choose what the run file leaves open."""
    run_dir = Path(config.run_dir)
    check_vacant(run_dir, resume=resume, force=force)
    check_installed(wanted=config.train.tensorboard)
    runtime = make_runtime(config.runtime)
    autoconfig = AutoConfig(origins, report)
    goes_on = resume and (run_dir / "run.yaml").is_file() and bool(checkpoints(run_dir))
    if goes_on:
        config = autoconfig.restore_choices(config, run_dir / "run.yaml")
    ends_at = None
    budget_seconds = None if goes_on else autoconfig.budget_seconds(config)
    if budget_seconds is not None:
        _check_named(config.data)
        ends_at = started + budget_seconds
        if runtime.on_cpu:
            keep_freed_memory()  # as in the run, whose speed is measured
        speed = training_flops_per_second(config, runtime) * processes.count
        config = autoconfig.choose_model_size(config, speed, ends_at - time.monotonic())
    tokenizer, prepared = prepare_parts(config.data, wanted_tokenizer(config), report)
    taught = _taught(config, tokenizer, prepared, runtime, report)
    batches = _batches(config, tokenizer, prepared, runtime, processes, taught.kept)
    deadline = None
    if ends_at is not None:
        most_steps = batches.most_steps if isinstance(batches, MixedBatches) else None
        model_config = _model_config(config, tokenizer)
        if is_sharded(model_config, config.optim, runtime.device, processes):  # one process has no room for it
            model, seconds = _guess_step(model_config, config.train.batch_size, speed)
        else:
            probe, objective = new_state(model_config, config, runtime), taught.objective or next_token_nats
            model, seconds = probe.model, step_seconds(config, probe, batches, runtime, objective) / processes.count
        config, pause_seconds = autoconfig.choose_steps(config, model, seconds, ends_at=ends_at, most_steps=most_steps)
        deadline = Deadline(ends_at, config.train, pause_seconds=pause_seconds, most_steps=most_steps)
    if isinstance(batches, MixedBatches):
        _tell_mixture(batches, config.train.steps, report)
    if not goes_on:
        epochs = batches.epochs(config.train.steps)
        config = autoconfig.regularize_repeated_data(config, epochs)
        if budget_seconds is not None:
            config = autoconfig.choose_bigrams(config, epochs, tokenizer.vocab_size)
    sharded = is_sharded(_model_config(config, tokenizer), config.optim, runtime.device, processes)
    if sharded:
        config = _as_sharded(config, report)
    elif not goes_on:
        config = autoconfig.choose_compile(config, runtime, budget_seconds)
    return _Begun(config, tokenizer, prepared, deadline, taught, sharded)


def _guess_step(config: ModelConfig, batch_size: int, speed: float) -> tuple[GPT, float]:
    """Return the model without weights, and the seconds of a step at so many FLOP/s; the clock corrects the number of
    steps while they are taken."""
    with torch.device("meta"):
        model = GPT(config)
    tokens = batch_size * config.context_length
    return model, tokens * model.train_flops_per_token(config.context_length) / speed


def _as_sharded(config: PretrainConfig, report: Report) -> PretrainConfig:
    """Return the run with what a sharded model can do."""
    if config.runtime.compile:
        report.warning("runtime.compile: blocks that are sharded are not compiled")
    return dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, compile=False))


def _check_shares(config: PretrainConfig, batches: Batches, processes: Processes) -> None:
    """Raise ConfigError where a process would have nothing to do."""
    size, shares = config.train.batch_size, config.train.batch_size // batches.micro_batch_size
    if shares >= processes.count:
        return
    if size < processes.count:
        raise ConfigError(f"train.batch_size: {size} is fewer than the {processes.count} processes; start fewer")
    raise ConfigError(
        f"train.micro_batch_size: {batches.micro_batch_size} cuts a step into {shares} parts for {processes.count} "
        f"processes; set it to at most {size // processes.count}, or leave it out"
    )


def _check_named(data: DataConfig) -> None:
    """Check that the inputs exist before the machine is timed; ConfigError where one does not."""
    named = [name for name in (*data.inputs, *data.validation) if name != "-" and not glob.has_magic(name)]
    if missing := [name for name in named if not Path(name).exists()]:
        find_sources(missing, TextOptions())


Batches = TokenBatches | MixedBatches


def _batches(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    prepared: Sequence[Path],
    runtime: Runtime,
    processes: Processes,
    taught: Sequence[TaughtTokens],
) -> Batches:
    """Return the batches of prepared directories; DataError where one and the tokenizer do not fit."""
    for directory in prepared:
        if read_index(directory)["tokenizer_sha256"] != tokenizer.sha256:
            raise DataError(f"{escape(str(directory))}: its tokenizer.json has changed; run gptcli prepare again")
    if tokenizer.end_of_text is None:
        raise DataError("the tokenizer has no <|endoftext|>; train it with gptcli train-tokenizer")
    context_length, seed, goldfish = config.model.context_length, config.runtime.seed, config.loss.goldfish
    tokens = [near(TokenArray(directory, "train"), runtime.device) for directory in prepared]
    said: list[TaughtTokens | None] = [*taught] or [None] * len(tokens)
    shapes: dict[str, Any] = {
        "batch_size": config.train.batch_size,
        "micro_batch_size": micro_batch_rows(
            config.train, context_length, on_cpu=runtime.on_cpu, processes=processes.count
        ),
        "first_token": tokenizer.end_of_text,
        "seed": seed,
    }
    if not config.data.mixed:
        return TokenBatches(tokens[0], context_length=context_length, goldfish=goldfish, taught=said[0], **shapes)
    sources = [
        TokenRows(text, context_length=context_length, seed=derived_seed(seed, name), goldfish=goldfish, taught=of_text,
                  name=name)
        for text, of_text, name in zip(tokens, said, config.data.inputs, strict=True)
    ]  # fmt: skip
    return MixedBatches(sources, config.data.parts, temperature=config.data.temperature, **shapes)


def _tell_mixture(batches: MixedBatches, steps: int, report: Report) -> None:
    """Report what a run reads of each part of a mixture; ConfigError where the parts' caps do not allow it."""
    batches.check(steps)
    for (name, epochs), share in zip(batches.epochs_of(steps).items(), batches.shares, strict=True):
        report.message(f"{escape(name)}: {share:.1%} of the rows, {epochs:.3g} epochs")


def _job(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    prepared: Sequence[Path],
    batches: Batches,
    runtime: Runtime,
    report: Report,
) -> Job:
    """Describe pretraining as a job."""
    steps = config.train.steps
    sources = [fact for directory in prepared for fact in read_index(directory)["inputs"]]
    content = {"tokenizer": tokenizer.sha256, "inputs": [fact["sha256"] for fact in sources]}
    held_out = _validation_ids(prepared, config, report)
    names = [""] if isinstance(batches, TokenBatches) else batches.names
    texts = {name: ids for name, ids in zip(names, held_out, strict=False) if ids}
    return Job(
        command="pretrain",
        origin="from scratch",
        config=config,
        run_file={**dataclasses.asdict(config), "content": content},
        run_dir=Path(config.run_dir),
        optim=config.optim,
        train=config.train,
        seed=config.runtime.seed,
        tokenizer=tokenizer,
        batches=batches,
        objective=next_token_nats,
        validate=lambda model, together: validate_texts(model, tokenizer, texts, runtime, together),
        sample=lambda model: write_sample(model, tokenizer, runtime, config.train, seed=config.runtime.seed),
        description=(
            f"{sum(map(len, _tokens(batches))):,} training tokens, {count(steps, 'step')} of "
            f"{config.train.batch_size * config.model.context_length:,} tokens ({batches.epochs(steps):.2g} epochs)"
        ),
        patience=config.train.patience,
        sources=sources,
        facts=None if isinstance(batches, TokenBatches) else lambda step: {"epochs": batches.epochs_of(step)},
    )


def _tokens(batches: Batches) -> list[TokenArray | ResidentTokens]:
    return [batches.tokens] if isinstance(batches, TokenBatches) else [source.tokens for source in batches.sources]


def _validation_ids(prepared: Sequence[Path], config: PretrainConfig, report: Report) -> list[list[int]]:
    """Return held-out tokens of each text; once, where data.validation holds out the same for all that is raw."""
    directories = prepared
    if config.data.validation:
        raw = [not is_prepared(Path(name)) for name in config.data.inputs] if config.data.mixed else [True]
        directories = list(itertools.compress(prepared, raw))[:1]
    splits = [TokenArray(directory, "validation") for directory in directories]
    if not any(map(len, splits)):
        report.warning("the validation split is empty; there will be no validation loss")
    wanted = config.train.eval_tokens
    most = max(2, wanted // len(splits)) if wanted else max(map(len, splits))  # the first predicts the second
    return [[int(token) for token in tokens.read(0, min(len(tokens), most))] for tokens in splits]


def _model_config(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """Return the model with its vocabulary; ConfigError where the tokenizer does not fit in."""
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise ConfigError(f"model.vocab_size: {vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}")
    return dataclasses.replace(config.model, vocab_size=vocab_size)
