"""A run file -> a run directory with checkpoints.

runs/demo/
  run.yaml  metrics.jsonl  lock
  checkpoints/step-000500/ ...
  latest -> checkpoints/...   best -> checkpoints/...
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli import checkpoint, configfile, fsio
from gptcli.checkpoint import TrainState
from gptcli.config import GenerateOptions, ModelConfig, PretrainConfig
from gptcli.data.batches import TokenBatches, derived_seed
from gptcli.data.corpus import cache_directory, read_corpus, survey
from gptcli.data.shards import SPLITS, TokenArray, is_prepared, read_index
from gptcli.data.tokenizer import Tokenizer
from gptcli.display import shown
from gptcli.engine import Engine, Request
from gptcli.errors import ConfigError, DataError, NumericalError, RefusedError
from gptcli.interrupt import stop_on_signals
from gptcli.metrics import TextScore, score_documents
from gptcli.model import GPT
from gptcli.optim import Optimizers
from gptcli.report import Report
from gptcli.runs.prepare import encode_corpus, finish
from gptcli.runs.train_tokenizer import learn_tokenizer
from gptcli.runtime import Runtime, keep_freed_memory, make_runtime, matmul_flops_per_second
from gptcli.train import Hooks, Record, train

# What may differ between a run and its resumption without making it another run.
FREE_TO_CHANGE = {
    "run_dir",
    "data.cache_dir",
    "train.steps",
    "train.micro_batch_size",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.eval_tokens",
    "train.save_every_steps",
    "train.keep_checkpoints",
    "train.sample_every_steps",
    "train.sample_prompt",
    "train.sample_tokens",
    "runtime.device",
    "runtime.threads",
    "runtime.compile",
}


ABANDONED_SECONDS = 7 * 24 * 3600  # what a killed preparation left is kept so long, to go on with


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended."""

    run_dir: Path
    step: int
    finished: bool
    exit_code: int  # 0, or 130/143 where a signal ended it
    bits_per_byte: float | None  # of the last validation

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "run_dir": str(self.run_dir)}


def pretrain(config: PretrainConfig, *, resume: bool = False, force: bool = False, report: Report) -> PretrainResult:
    """Train a model from scratch, or go on from the newest whole checkpoint of the run directory."""
    run_dir = Path(config.run_dir)
    fsio.check_writable(run_dir / "run.yaml", force=True)
    with fsio.locked(run_dir):
        _check_vacant(run_dir, resume=resume, force=force)
        runtime = make_runtime(config.runtime)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        tokenizer, prepared = prepare_data(config, report)
        run = _Run(config, run_dir, tokenizer, prepared, runtime, report)
        if force and not resume:
            _clear(run_dir)
        return run.go(resume=resume)


def _check_vacant(run_dir: Path, *, resume: bool, force: bool) -> None:
    """A directory with checkpoints is gone on with or begun again only when the user says which."""
    fsio.sweep(run_dir)
    if (run_dir / "checkpoints").is_dir():
        fsio.sweep(run_dir / "checkpoints")
    found = checkpoint.checkpoints(run_dir)
    if resume or not found:
        return
    if not force:
        raise RefusedError(
            f"{shown(str(run_dir))}: holds a run ({found[0].name}); pass --resume to go on with it, "
            "--force to begin again, or name another run_dir"
        )


def _clear(run_dir: Path) -> None:
    """Make room for a run that begins again; only when it is known that it can begin."""
    if (run_dir / "checkpoints").exists():
        fsio.delete(run_dir / "checkpoints")
    for link in ("latest", "best"):
        (run_dir / link).unlink(missing_ok=True)


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
                    directory.mkdir(parents=True, exist_ok=True)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    fsio.write_file(path, tokenizer.content)
    return tokenizer


class _Run:
    """The parts of one run, wired together."""

    def __init__(
        self,
        config: PretrainConfig,
        run_dir: Path,
        tokenizer: Tokenizer,
        prepared: Path,
        runtime: Runtime,
        report: Report,
    ) -> None:
        self.config, self.run_dir, self.tokenizer = config, run_dir, tokenizer
        self.runtime, self.report = runtime, report
        self.index = read_index(prepared)
        if self.index["tokenizer_sha256"] != tokenizer.sha256:
            raise DataError(f"{shown(str(prepared))}: its tokenizer.json has changed; run gptcli prepare again")
        self.first_token = tokenizer.end_of_text
        if self.first_token is None:
            raise DataError("the tokenizer has no <|endoftext|>; train it with gptcli train-tokenizer")
        vocab_size = config.model.vocab_size or tokenizer.vocab_size
        if vocab_size < tokenizer.vocab_size:
            raise ConfigError(f"model.vocab_size: {vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}")
        self.model_config = dataclasses.replace(config.model, vocab_size=vocab_size)
        self.tokens = TokenArray(prepared, "train")
        self.validation = self._validation_ids(prepared)
        train_config = config.train
        self.batches = TokenBatches(
            self.tokens,
            context_length=config.model.context_length,
            batch_size=train_config.batch_size,
            micro_batch_size=train_config.micro_batch,
            first_token=self.first_token,
            seed=config.runtime.seed,
        )
        self.metrics_path = run_dir / "metrics.jsonl"
        self.last_bits_per_byte: float | None = None
        self.validated_step = -1
        # What identifies the run: a checkpoint carries it, and resuming compares it.
        self.run_file = {
            **dataclasses.asdict(config),
            "content": {"tokenizer": tokenizer.sha256, "inputs": [fact["sha256"] for fact in self.index["inputs"]]},
        }

    def _validation_ids(self, prepared: Path) -> list[int]:
        tokens = TokenArray(prepared, "validation")
        count = min(len(tokens), self.config.train.eval_tokens or len(tokens))
        if len(tokens) == 0:
            self.report.warning("the validation split is empty; there will be no validation loss")
        return [int(token) for token in tokens.read(0, count)]

    def go(self, *, resume: bool) -> PretrainResult:
        config = self.config
        state = new_state(self.model_config, config, self.runtime)
        found = checkpoint.newest_verified(self.run_dir, self.report.warning) if resume else None
        if found is not None:
            self._restore(state, found)
        self._trim_metrics(state.step)
        fsio.write_file(self.run_dir / "run.yaml", configfile.dump(config))
        self._describe(state, resumed=found is not None)
        if state.step >= config.train.steps:
            self.report.message(f"already done at step {state.step}; raise train.steps to go on")
            return PretrainResult(self.run_dir, state.step, True, 0, None)
        again = f"gptcli pretrain {self.run_dir / 'run.yaml'} --resume"

        def announce() -> None:
            self.report.message("stopping after this step and saving; once more to stop at once")

        with stop_on_signals(announce) as stop, self.metrics_path.open("a", encoding="utf-8") as metrics:
            hooks = Hooks(
                evaluate=lambda state: self._evaluate(state, self._writer(metrics)),
                save=self._save,
                sample=lambda state: self._sample(state, self._writer(metrics)),
                report=self._writer(metrics),
                stop=stop,
            )
            model = state.model
            try:
                finished = train(
                    state,
                    self.batches,
                    config.train,
                    config.optim,
                    self.runtime,
                    hooks,
                    seed=config.runtime.seed,
                    flops_per_token=model.train_flops_per_token(config.model.context_length),
                    peak_flops=matmul_flops_per_second(self.runtime),
                )
            except NumericalError as error:
                last = checkpoint.checkpoints(self.run_dir)
                kept = f"the last good checkpoint is {last[0].name}" if last else "no checkpoint was written yet"
                raise NumericalError(f"{error}; {kept}") from None
        if not finished:
            self.report.message(f"stopped and saved at step {state.step}; go on with: {again}")
        exit_code = 0 if finished else stop.exit_code
        return PretrainResult(self.run_dir, state.step, finished, exit_code, self.last_bits_per_byte)

    def _restore(self, state: TrainState, directory: Path) -> None:
        training = fsio.read_json(directory / "training.json")
        changed = sorted(_differences(training.get("run", {}), json.loads(json.dumps(self.run_file))) - FREE_TO_CHANGE)
        if changed:
            raise DataError(
                f"{shown(str(self.run_dir))}: cannot resume, {', '.join(changed)} differ from the run's; "
                "restore them or name another run_dir"
            )
        if training.get("threads") != torch.get_num_threads() or training.get("torch") != torch.__version__:
            self.report.warning(
                f"the run used torch {training.get('torch')} with {training.get('threads')} threads, this is "
                f"{torch.__version__} with {torch.get_num_threads()}: the result may differ in the last bits"
            )
        checkpoint.restore(state, directory)

    def _describe(self, state: TrainState, *, resumed: bool) -> None:
        model, config = state.model, self.config
        epochs = config.train.steps * config.train.batch_size / self.batches.rows
        how = f"resumed at step {state.step}" if resumed else "from scratch"
        self.report.message(
            f"{how}: {model.num_parameters():,} parameters, {len(self.tokens):,} training tokens, "
            f"{config.train.steps:,} steps of {config.train.batch_size * config.model.context_length:,} tokens "
            f"({epochs:.2g} epochs), {self.runtime.device} {str(self.runtime.dtype).removeprefix('torch.')}, "
            f"{self.runtime.threads} threads"
        )

    def _trim_metrics(self, step: int) -> None:
        """Drop the lines of steps that will be done again, and half a line that a kill left."""
        if not self.metrics_path.exists():
            return
        kept = []
        for line in self.metrics_path.read_bytes().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] > step or not line.endswith(b"\n"):
                    continue
            except (ValueError, KeyError, TypeError):
                continue
            kept.append(line)
        fsio.write_file(self.metrics_path, b"".join(kept) if step else b"")

    def _writer(self, file: Any) -> Callable[[Record], None]:
        def write(record: Record) -> None:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
            file.write(json.dumps(finite, allow_nan=False, ensure_ascii=False) + "\n")
            file.flush()
            if record["kind"] == "train":
                note = f"loss {record['loss_nats']:.3f}  {record['tokens_per_second']:,.0f} tokens/s"
                if self.last_bits_per_byte is not None:
                    note += f"  validation {self.last_bits_per_byte:.3f} bits/byte"
                self.report.progress("train", record["step"], self.config.train.steps, note)

        return write

    def _evaluate(self, state: TrainState, write: Callable[[Record], None]) -> None:
        if not self.validation:
            return
        # Without overlap: as many forward passes as tokens need, the same measure at every step of every run.
        stride = self.config.model.context_length
        (score,) = score_documents(state.model, self.tokenizer, [self.validation], self.runtime, stride=stride)
        assert isinstance(score, TextScore)
        self.last_bits_per_byte, self.validated_step = score.bits_per_byte, state.step
        write(
            {
                "kind": "validation",
                "step": state.step,
                "loss_nats": score.loss_nats,
                "perplexity": score.perplexity,
                "bits_per_byte": score.bits_per_byte,
            }
        )
        self.report.message(
            f"step {state.step}: validation loss {score.loss_nats:.4f} nats, {score.bits_per_byte:.4f} bits per byte"
        )

    def _sample(self, state: TrainState, write: Callable[[Record], None]) -> None:
        config = self.config.train
        state.model.eval()
        engine = Engine(state.model, self.tokenizer, self.runtime, slots=1)
        options = GenerateOptions(max_tokens=config.sample_tokens, seed=self.config.runtime.seed, truncate="left")
        prompt = engine.fit(self.tokenizer.encode(config.sample_prompt), options)
        capacity = len(prompt) + 1 + config.sample_tokens
        (completion,) = engine.run([Request(prompt, options)], capacity=capacity)
        state.model.train()
        text = config.sample_prompt + completion.text
        write({"kind": "sample", "step": state.step, "text": text})
        self.report.message(f"step {state.step}: {shown(text, 300)}")

    def _save(self, state: TrainState) -> None:
        bits_per_byte = self.last_bits_per_byte
        if bits_per_byte is not None and self.validated_step == state.step and bits_per_byte < state.best_bits_per_byte:
            state.best_bits_per_byte, state.best_step = bits_per_byte, state.step  # the best of those that are saved
        checkpoint.save(state, self.run_dir, self.tokenizer, self.run_file)
        checkpoint.keep(self.run_dir, state, self.config.train.keep_checkpoints)


def new_state(model_config: ModelConfig, config: PretrainConfig, runtime: Runtime) -> TrainState:
    """The model at step 0. Weights are drawn on the CPU, so that every device begins alike."""
    model = GPT(model_config)
    model.initialize(torch.Generator().manual_seed(derived_seed(config.runtime.seed, "weights")))
    model.to(runtime.device)
    if config.runtime.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
    optimizers = Optimizers(model.named_parameters(), config.optim, row_blocks=model.row_blocks(), dtype=runtime.dtype)
    return TrainState(model, optimizers)


def _differences(old: Any, new: Any, prefix: str = "") -> set[str]:
    """Dotted names of the values that differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return set() if old == new else {prefix}
    names = {f"{prefix}.{key}".lstrip("."): key for key in old.keys() | new.keys()}
    return set().union(*(_differences(old.get(key), new.get(key), name) for name, key in names.items()))
