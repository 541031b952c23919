"""A run file -> a run directory with checkpoints of a model trained from scratch."""

from __future__ import annotations

import dataclasses
import glob
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gptcli.api.prepare import encode_corpus, finish
from gptcli.api.train_tokenizer import learn_tokenizer
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import shown
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.data import DataConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.batches import TokenBatches, derived_seed
from gptcli.data.corpus import cache_directory, read_corpus, survey
from gptcli.data.shards import SPLITS, TokenArray, is_prepared, near, read_index
from gptcli.data.text import TextOptions, find_sources
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.attention_kernels import use_fastest
from gptcli.device.runtime import Runtime, keep_freed_memory, make_runtime
from gptcli.model.gpt import GPT
from gptcli.observe.tensorboard import check_installed
from gptcli.train import checkpoint
from gptcli.train.autoconfig import Settler, training_flops_per_second
from gptcli.train.checkpoint import TrainState
from gptcli.train.compile import compile_blocks
from gptcli.train.deadline import Deadline
from gptcli.train.loop import make_optimizers, micro_batch_rows, next_token_nats
from gptcli.train.run import Job, Outcome, Training, validate_text, write_sample
from gptcli.train.run_directory import check_vacant, clear

ABANDONED_SECONDS = 7 * 24 * 3600  # what a killed preparation left is kept so long, to go on with


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
    fsio.check_writable(run_dir / "run.yaml", force=True)
    with fsio.locked(run_dir):
        check_vacant(run_dir, resume=resume, force=force)
        check_installed(wanted=config.train.tensorboard)
        runtime = make_runtime(config.runtime)
        settler = Settler(origins or {}, report)
        goes_on = resume and (run_dir / "run.yaml").is_file() and bool(checkpoint.checkpoints(run_dir))
        if goes_on:
            config = settler.as_before(config, run_dir / "run.yaml")
        ends_at = None
        budget_seconds = None if goes_on else settler.budget_seconds(config)
        if budget_seconds is not None:
            _check_named(config.data)
            ends_at = started + budget_seconds
            if runtime.on_cpu:
                keep_freed_memory()  # as in the run, whose speed is measured
            speed = training_flops_per_second(config, runtime)
            config = settler.sizes(config, speed, ends_at - time.monotonic())
        tokenizer, prepared = prepare_data(config, report)
        batches = _batches(config, tokenizer, prepared, runtime)
        deadline = None
        if ends_at is not None:
            probe = new_state(_model_config(config, tokenizer), config, runtime)
            config, pause_seconds = settler.steps(config, probe, batches, runtime, ends_at=ends_at)
            deadline = Deadline(ends_at, config.train, pause_seconds=pause_seconds)
            del probe
        if not goes_on:
            config = settler.repeated(config, config.train.steps * config.train.batch_size / batches.rows)
            config = settler.compiles(config, runtime, budget_seconds)
        job = _job(config, tokenizer, prepared, batches, runtime, report)
        if runtime.on_cpu:
            keep_freed_memory()
        state = new_state(_model_config(config, tokenizer), config, runtime)
        if force and not resume:
            clear(run_dir)
        return Training(job, runtime, report, deadline).go(state, resume=resume)


def _check_named(data: DataConfig) -> None:
    """ConfigError where an input is not there: said before the machine is measured for a text that there is not."""
    named = [name for name in (*data.train, *data.validation) if name != "-" and not glob.has_magic(name)]
    if missing := [name for name in named if not Path(name).exists()]:
        find_sources(missing, TextOptions())


def prepare_data(config: PretrainConfig, report: Report) -> tuple[Tokenizer, Path]:
    """Tokenizer and prepared directory of a run; made and kept in the cache where the run file names raw text."""
    data = config.data
    directories = [Path(path) for path in data.train if is_prepared(Path(path))]
    if directories:
        if len(data.train) > 1 or data.validation:
            raise ConfigError(f"data.train: {shown(str(directories[0]))} is a prepared directory; name it alone")
        tokenizer = Tokenizer.load(directories[0])
        if config.tokenizer.path and Tokenizer.load(config.tokenizer.path).sha256 != tokenizer.sha256:
            raise DataError(
                f"tokenizer.path: {shown(config.tokenizer.path)} is not the tokenizer that "
                f"{shown(str(directories[0]))} was prepared with; leave it out or run gptcli prepare again"
            )
        return tokenizer, directories[0]
    cache = cache_directory(data.cache_dir)
    given = Tokenizer.load(config.tokenizer.path) if config.tokenizer.path else None
    with _spool_directory(cache) as spool:
        corpus = survey(data, spool, report)
        work = cache / "work" / corpus.key()
        with fsio.locked(work, wait=report.message):  # runs on the same text make its data once
            tokenizer = given or _cached_tokenizer(
                config, corpus.key(dataclasses.astuple(config.tokenizer)), cache, corpus, report
            )
            key = corpus.key(tokenizer.sha256)
            prepared = cache / "prepared" / key
            if not _is_whole(prepared, report):
                partial = work / key
                for directory in (partial, prepared.parent):
                    fsio.make_directory(directory)
                encode_corpus(corpus, tokenizer, partial, report=report)
                finish(partial, prepared)
    return tokenizer, prepared


@contextmanager
def _spool_directory(cache: Path) -> Iterator[Path]:
    """A directory for copies of streams, gone afterwards; removes what killed runs left in the cache, too."""
    work = cache / "work"
    work.mkdir(parents=True, exist_ok=True)
    fsio.sweep_abandoned(work, "spool-*", seconds=60)
    for directory, pattern in ((work, "*"), (cache / "prepared", ".*"), (cache / "tokenizers", ".*")):
        fsio.sweep_abandoned(directory, pattern, seconds=ABANDONED_SECONDS)
    spool = Path(tempfile.mkdtemp(prefix="spool-", dir=work))
    try:
        with fsio.locked(spool):
            yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def _is_whole(prepared: Path, report: Report) -> bool:
    """A prepared directory of the cache can be used; one that was damaged is made again."""
    if not is_prepared(prepared):
        return False
    try:
        for split in SPLITS:
            TokenArray(prepared, split)
    except DataError:
        report.warning(f"{shown(str(prepared))}: damaged; preparing the text again")
        return False
    return True


def _cached_tokenizer(config: PretrainConfig, key: str, cache: Path, corpus: Any, report: Report) -> Tokenizer:
    path = cache / "tokenizers" / f"{key}.json"
    if path.exists():
        return Tokenizer(path.read_bytes(), name=str(path))
    wanted = config.tokenizer
    done = 0

    def training_pieces() -> Iterator[Any]:
        nonlocal done
        for split, piece in read_corpus(corpus):
            done += piece.raw_bytes
            report.progress("train tokenizer", done, corpus.total_bytes, unit="B")
            if split == "train":
                yield piece

    tokenizer, facts = learn_tokenizer(
        training_pieces(), vocab_size=wanted.vocab_size, pattern=wanted.pattern, max_bytes=wanted.max_bytes
    )
    report.message(f"trained a tokenizer: {facts.vocab_size} tokens, {facts.bytes_per_token:.2f} bytes per token")
    fsio.make_directory(path.parent)
    fsio.write_file(path, tokenizer.content)
    return tokenizer


def _batches(config: PretrainConfig, tokenizer: Tokenizer, prepared: Path, runtime: Runtime) -> TokenBatches:
    """The batches of a prepared directory; DataError where it and the tokenizer do not fit."""
    index = read_index(prepared)
    if index["tokenizer_sha256"] != tokenizer.sha256:
        raise DataError(f"{shown(str(prepared))}: its tokenizer.json has changed; run gptcli prepare again")
    if tokenizer.end_of_text is None:
        raise DataError("the tokenizer has no <|endoftext|>; train it with gptcli train-tokenizer")
    context_length = config.model.context_length
    return TokenBatches(
        near(TokenArray(prepared, "train"), runtime.device),
        context_length=context_length,
        batch_size=config.train.batch_size,
        micro_batch_size=micro_batch_rows(config.train, context_length, on_cpu=runtime.on_cpu),
        first_token=tokenizer.end_of_text,
        seed=config.runtime.seed,
    )


def _job(
    config: PretrainConfig,
    tokenizer: Tokenizer,
    prepared: Path,
    batches: TokenBatches,
    runtime: Runtime,
    report: Report,
) -> Job:
    """Pretraining as a job."""
    epochs = config.train.steps * config.train.batch_size / batches.rows
    inputs = [fact["sha256"] for fact in read_index(prepared)["inputs"]]
    content = {"tokenizer": tokenizer.sha256, "inputs": inputs}
    held_out = _validation_ids(prepared, config, report)
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
        validate=lambda model: validate_text(model, tokenizer, held_out, runtime),
        sample=lambda model: write_sample(model, tokenizer, runtime, config.train, seed=config.runtime.seed),
        description=(
            f"{len(batches.tokens):,} training tokens, {count(config.train.steps, 'step')} of "
            f"{config.train.batch_size * config.model.context_length:,} tokens ({epochs:.2g} epochs)"
        ),
        patience=config.train.patience,
    )


def _validation_ids(prepared: Path, config: PretrainConfig, report: Report) -> list[int]:
    tokens = TokenArray(prepared, "validation")
    held_out = min(len(tokens), config.train.eval_tokens or len(tokens))
    if len(tokens) == 0:
        report.warning("the validation split is empty; there will be no validation loss")
    return [int(token) for token in tokens.read(0, held_out)]


def _model_config(config: PretrainConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model with its vocabulary; ConfigError where the tokenizer does not fit in."""
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise ConfigError(f"model.vocab_size: {vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}")
    return dataclasses.replace(config.model, vocab_size=vocab_size)


def new_state(model_config: ModelConfig, config: PretrainConfig, runtime: Runtime) -> TrainState:
    """The model at step 0. Weights are drawn on the CPU, so that every device begins alike."""
    model = GPT(model_config)
    model.initialize(torch.Generator().manual_seed(derived_seed(config.runtime.seed, "weights")))
    model.to(runtime.device)
    if runtime.device.type == "cuda":
        rows = micro_batch_rows(config.train, model_config.context_length, on_cpu=False)
        shape = (rows, model_config.num_heads, model_config.context_length, model_config.head_size)
        use_fastest(shape, model_config.kv_heads, runtime.dtype, runtime.device)
    if config.runtime.compile:
        compile_blocks(model)
    step_tokens = config.train.batch_size * model_config.context_length
    optimizers = make_optimizers(model, config.optim, step_tokens=step_tokens, dtype=runtime.dtype)
    optimizers.tensors(create=True)  # now: made in the first step it would lie between what that step frees
    return TrainState(model, optimizers)
