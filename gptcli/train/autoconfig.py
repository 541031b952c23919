"""Choose what a run file leaves open, for this machine, this text and the time there is.

A field counts as open where it has its default and neither the file nor an override gives it. With `train.budget` a
half-second probe of the machine says how many FLOPs fit into the time; they decide the model's size, the vocabulary and
the batch. Steps of the model itself then decide the number of steps. Text that is seen more than 1.5 times turns on a
little weight decay, more than four times a larger one and stopping by validation, more than ten times dropout, too.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.base.report import Report
from gptcli.base.units import amount, count, duration
from gptcli.config import yaml_file
from gptcli.config.data import DataConfig, SourceConfig
from gptcli.config.model import ModelConfig
from gptcli.config.schema import keys_with
from gptcli.config.train import OptimConfig, PretrainConfig
from gptcli.data.batches import Batch, Step, counted
from gptcli.data.corpus import text_options
from gptcli.data.shards import is_prepared
from gptcli.data.size import english_bytes_per_token, estimate_text_bytes
from gptcli.data.text import find_sources
from gptcli.device.machine import synchronize
from gptcli.device.runtime import Runtime, matmul_flops_per_second
from gptcli.model.gpt import GPT
from gptcli.train.compile import unable_to_compile
from gptcli.train.loop import train_step
from gptcli.train.loss import next_token_nats
from gptcli.train.optimizers import make_optimizers
from gptcli.train.resume import as_it_began
from gptcli.train.state import TrainState
from gptcli.train.step import Objective

PROBE_SECONDS = 0.5
MIN_PROBE_STEPS = 3

# Layers, width, heads and vocabulary, from seconds on a laptop to days on a GPU.
SIZES = (
    (3, 96, 3, 1024),
    (4, 128, 4, 1024),
    (4, 192, 6, 2048),
    (4, 256, 8, 2048),
    (6, 256, 8, 4096),
    (6, 384, 6, 4096),
    (8, 512, 8, 8192),
    (12, 768, 12, 16384),
    (16, 1024, 16, 32768),
    (24, 1536, 24, 32768),
)
SIZE_FIELDS = tuple(key for key, group in keys_with(PretrainConfig, "auto").items() if group == "size")

# Weights in matrix products that reach the lowest loss with C FLOPs: N = PARAMETERS x (C / FLOPS)^EXPONENT. A line
# through the best sizes found on a CPU for budgets of up to ten minutes, and nanochat's law at 4e19 FLOPs.
PARAMETERS, FLOPS, EXPONENT = 3.2e6, 3e13, 0.39

STEPS_WANTED = 500  # what the batch is sized for: fewer steps learn less from the same tokens
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 1024, 1 << 19
BYTES_PER_VOCABULARY_ENTRY = 400  # of text, so that each token is seen often enough to be learnt
PREPARING_BYTES_PER_SECOND = 1e6  # tokenizer training and encoding, one core
MIN_STEPS = 20  # that a batch leaves of text that may not be read again
MILESTONES = 4  # validations, samples and checkpoints of a run with a budget
EVAL_SHARE = 0.01  # of the budget, for one validation

# Compiling the blocks takes about COMPILED_WIDTH / width off a step: nothing worth its time in a wide model.
COMPILED_WIDTH = 32
MAX_COMPILED_WIDTH = 512
MIN_COMPILED_SECONDS = 240
TRAINING_SHARE = 0.5  # of the matrix peak that training reaches, roughly

BIGRAM_ROWS = 5  # times the vocabulary, of the table of token pairs
SEVERAL_EPOCHS = 1.5  # from here on a little decay learns more, and pairs without any are learnt by heart
REPEATED_A_LITTLE = {"optim.weight_decay": 0.2, "optim.cautious_decay": True, "optim.bigram_weight_decay": 1.0}
MAX_EPOCHS = 4  # repeated text is worth as much as new text up to here (Muennighoff et al. 2023)
REPEATED = keys_with(PretrainConfig, "repeated")
MANY_EPOCHS = 10  # from here on dropout and a little decay learnt more than cautious decay, which did up to here
REPEATED_OFTEN = {"model.dropout": 0.1, "optim.weight_decay": 0.1, "train.patience": REPEATED["train.patience"]}
CHOSEN = (*keys_with(PretrainConfig, "auto"), *REPEATED, "optim.bigram_weight_decay", "model.dropout")


@dataclass(frozen=True)
class AutoConfig:
    """Fills in the open fields of a run file. `origins`: where each value comes from, as config.yaml_file tells; empty
    where the config was made in Python."""

    origins: Mapping[str, str]
    report: Report

    def is_open(self, config: PretrainConfig, dotted: str) -> bool:
        if self.origins:
            return self.origins.get(dotted, "default") == "default"
        section, _, name = dotted.partition(".")
        default: Any = {"model": ModelConfig, "optim": OptimConfig}.get(section, type(getattr(config, section)))()
        return bool(getattr(getattr(config, section), name) == getattr(default, name))

    def fill(self, config: PretrainConfig, values: Mapping[str, Any]) -> PretrainConfig:
        """Return the config with those of `values` whose fields are open."""
        changes: dict[str, dict[str, Any]] = {}
        for dotted, value in values.items():
            if self.is_open(config, dotted):
                section, _, name = dotted.partition(".")
                changes.setdefault(section, {})[name] = value
        replaced = {
            section: dataclasses.replace(getattr(config, section), **fields) for section, fields in changes.items()
        }
        return dataclasses.replace(config, **replaced)

    def restore_choices(self, config: PretrainConfig, run_yaml: Path) -> PretrainConfig:
        """Return the config of a resumed run with what was chosen when the run began."""
        config = as_it_began(config, run_yaml)
        before = yaml_file.load(PretrainConfig, run_yaml).value
        values = {dotted: getattr(getattr(before, (parts := dotted.split("."))[0]), parts[1]) for dotted in CHOSEN}
        return self.fill(config, values)

    def budget_seconds(self, config: PretrainConfig) -> float | None:
        """Return the seconds that a run is to take, None where its steps are given."""
        if config.train.budget_seconds is None or self.is_open(config, "train.steps"):
            return config.train.budget_seconds
        self.report.message("train.steps is given, so train.budget chooses nothing")
        return None

    def choose_model_size(self, config: PretrainConfig, speed: float, seconds: float) -> PretrainConfig:
        """Choose model, vocabulary and batch for `seconds`, preparing the text included, at `speed` FLOP/s."""
        text_bytes = _text_bytes(config.data)
        seconds = max(1.0, seconds - (text_bytes or 0) / PREPARING_BYTES_PER_SECOND)
        flops = speed * seconds
        self.report.message(
            f"budget: {amount(speed, 'FLOP/s')} in training steps of a small model, {amount(flops, 'FLOPs')} in "
            f"{duration(seconds)}"
        )
        wanted = PARAMETERS * (flops / FLOPS) ** EXPONENT
        layers, width, heads, vocab_size = min(SIZES, key=lambda size: abs(math.log(_weights(*size) / wanted)))
        if all(self.is_open(config, dotted) for dotted in SIZE_FIELDS):
            sizes = {"model.num_layers": layers, "model.hidden_size": width, "model.num_heads": heads}
            config = self.fill(config, sizes)
            self.report.message(
                f"model: {count(layers, 'layer')}, {width} wide; "
                f"{amount(wanted)} parameters are the best size for so many FLOPs"
            )
        if text_bytes:
            vocab_size = min(vocab_size, max(512, 1 << (text_bytes // BYTES_PER_VOCABULARY_ENTRY).bit_length()))
        given = config.tokenizer.path is not None or config.distill is not None
        trains_tokenizer = not given and not any(is_prepared(Path(p)) for p in config.data.inputs)
        if trains_tokenizer and self.is_open(config, "tokenizer.vocab_size"):
            config = self.fill(config, {"tokenizer.vocab_size": vocab_size})
            self.report.message(f"vocabulary: {vocab_size:,} tokens, by the model's width and the size of the text")
        weights = _weights(config.model.num_layers, config.model.hidden_size, 0, config.tokenizer.vocab_size)
        context = 128 if weights < 1.5e6 else 256 if weights < 3e7 else 1024
        config = self.fill(config, {"model.context_length": context})
        tokens = flops / (6 * weights)
        wanted_tokens = min(max(tokens / STEPS_WANTED, MIN_BATCH_TOKENS), MAX_BATCH_TOKENS)
        if text_bytes and (cap := _most_epochs(config.data)):
            per_token = english_bytes_per_token(config.tokenizer.vocab_size)
            wanted_tokens = min(wanted_tokens, cap * text_bytes / per_token / MIN_STEPS)
        rows = 1 << max(0, round(math.log2(wanted_tokens / config.model.context_length)))
        if self.is_open(config, "train.batch_size"):
            config = self.fill(config, {"train.batch_size": rows})
            self.report.message(
                f"batch: {count(rows, 'window')} of {config.model.context_length} tokens, "
                f"for about {STEPS_WANTED} steps"
            )
        return config

    def choose_steps(
        self,
        config: PretrainConfig,
        model: GPT,
        seconds_a_step: float,
        *,
        ends_at: float,
        most_steps: int | None = None,
    ) -> tuple[PretrainConfig, float]:
        """Choose the number of steps until time.monotonic() is `ends_at`, and when to validate -> the config, and the
        seconds that a validation with its sample and checkpoint takes. `most_steps`: as many as there are data for."""
        tokens_a_step = config.train.batch_size * config.model.context_length
        left = max(ends_at - time.monotonic(), seconds_a_step)
        scored_per_second = 3 * tokens_a_step / seconds_a_step  # forward is a third of a step
        eval_tokens = max(
            tokens_a_step, min(config.train.eval_tokens or 1 << 62, int(EVAL_SHARE * left * scored_per_second))
        )
        config = self.fill(config, {"train.eval_tokens": eval_tokens})
        sampling = config.train.sample_tokens * 2e-9 * model.num_parameters() + 0.1
        saving = 16 * model.num_parameters() / 2e8 + 0.1
        pause = (config.train.eval_tokens or eval_tokens) / scored_per_second + sampling + saving
        steps = max(1, int((left - MILESTONES * pause) / seconds_a_step))
        if most_steps is not None and most_steps < steps:
            self.report.message(
                f"max_epochs leaves text for {count(most_steps, 'step')}; the run will end before its time"
            )
            steps = max(1, most_steps)
        often = -(-steps // MILESTONES)
        values = {f"train.{name}_every_steps": often for name in ("eval", "save", "sample")}
        config = self.fill(
            config, {"train.steps": steps, "train.log_every_steps": max(1, min(10, steps // 50)), **values}
        )
        self.report.message(
            f"steps: {config.train.steps:,} of {duration(seconds_a_step)}, in the {duration(left)} that are left; "
            "corrected on the way"
        )
        return config, pause

    def choose_bigrams(self, config: PretrainConfig, epochs: float, vocab_size: int) -> PretrainConfig:
        """Give the `modern` preset an embedding of token pairs, unless the text is seen so often that it would be
        learnt by heart."""
        if epochs > MAX_EPOCHS or config.model.preset != "modern" or not self.is_open(config, "model.bigram_rows"):
            return config
        rows = BIGRAM_ROWS * vocab_size
        self.report.message(
            f"token pairs: an embedding of {rows:,} rows; for a model that transformers can load, "
            "-s model.bigram_rows=0"
        )
        return self.fill(config, {"model.bigram_rows": rows})

    def choose_compile(self, config: PretrainConfig, runtime: Runtime, seconds: float | None) -> PretrainConfig:
        """Choose runtime.compile, where it is open, for a run of `seconds` (None: its steps are given).

        True on a CPU in bfloat16, where it pays back, and without dropout, which is slower compiled.
        """
        if config.runtime.compile is not None:
            return config
        width = config.model.hidden_size
        fits = runtime.on_cpu and runtime.dtype == torch.bfloat16 and width <= MAX_COMPILED_WIDTH
        compiles = False
        if fits and not config.model.dropout:
            seconds = _seconds(config, runtime) if seconds is None else seconds
            compiles = seconds >= max(MIN_COMPILED_SECONDS, width) and not unable_to_compile(runtime.device)
        if compiles:
            self.report.message(
                f"compile: the blocks, which takes 5 to 20 s; steps of a model {width} wide then take less time, about "
                f"{COMPILED_WIDTH / width:.0%}"
            )
        return dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, compile=compiles))

    def regularize_repeated_data(self, config: PretrainConfig, epochs: float) -> PretrainConfig:
        """Turn on what keeps a model from learning text by heart, where it sees it more than SEVERAL_EPOCHS times."""
        if epochs <= SEVERAL_EPOCHS:
            return config
        if epochs <= MAX_EPOCHS:
            limit, wanted = SEVERAL_EPOCHS, REPEATED_A_LITTLE
        else:
            limit, wanted = MAX_EPOCHS, REPEATED if epochs <= MANY_EPOCHS else REPEATED_OFTEN
        open_values = {dotted: value for dotted, value in wanted.items() if self.is_open(config, dotted)}
        if not open_values:
            return config
        said = ", ".join(f"{dotted} {value}" for dotted, value in open_values.items())
        self.report.message(f"the text is seen {epochs:.3g} times, more than {limit}: {said}")
        return self.fill(config, open_values)


def step_seconds(
    config: PretrainConfig,
    state: TrainState,
    batches: Callable[[int], Step],
    runtime: Runtime,
    objective: Objective = next_token_nats,
) -> float:
    """Return the median seconds of an optimizer step, from PROBE_SECONDS of real ones after one that does not count."""
    times: list[float] = []
    end = math.inf
    while time.perf_counter() < end or len(times) <= MIN_PROBE_STEPS:
        started = time.perf_counter()
        train_step(
            state, batches(len(times)), config.optim.grad_clip_norm, runtime, seed=config.runtime.seed,
            objective=objective,
        )  # fmt: skip
        synchronize(runtime.device)
        times.append(time.perf_counter() - started)
        end = min(end, time.perf_counter() + PROBE_SECONDS)
    return statistics.median(times[1:])


def training_flops_per_second(config: PretrainConfig, runtime: Runtime) -> float:
    """Measure the FLOP/s of this machine in training steps of a small model."""
    model_config = ModelConfig(num_layers=4, hidden_size=128, num_heads=4, context_length=128, vocab_size=1024)
    model = GPT(model_config)
    model.initialize(torch.Generator().manual_seed(0))
    model.to(runtime.device)
    ids = torch.randint(1024, (8 if runtime.on_cpu else 512, 128), generator=torch.Generator().manual_seed(0))
    optimizers = make_optimizers(model, OptimConfig(), step_tokens=ids.numel(), dtype=runtime.dtype)
    probe = dataclasses.replace(config, model=model_config)
    seconds = step_seconds(probe, TrainState(model, optimizers), lambda _: counted([Batch(ids, ids, "probe")]), runtime)
    return model.train_flops_per_token(128) * ids.numel() / seconds


def _weights(layers: int, width: int, _heads: int, vocab_size: int) -> int:
    """Return the weights in matrix products: 12 width^2 a layer, and the head."""
    return 12 * layers * width**2 + vocab_size * width


def _seconds(config: PretrainConfig, runtime: Runtime) -> float:
    """Estimate the seconds that the steps of a run take on a CPU."""
    model = config.model
    weights = _weights(model.num_layers, model.hidden_size, 0, model.vocab_size or config.tokenizer.vocab_size)
    tokens = config.train.steps * config.train.batch_size * model.context_length
    return 6 * weights * tokens / (TRAINING_SHARE * (matmul_flops_per_second(runtime) or math.inf))


def _most_epochs(data: DataConfig) -> float | None:
    """Return how often the text may be read at most by the caps of its parts, None where nothing says so."""
    caps = [part.max_epochs for part in data.train if isinstance(part, SourceConfig) and part.max_epochs]
    return max(caps) if len(caps) == len(data.train) else None


def _text_bytes(data: DataConfig) -> int | None:
    """Return about how many bytes of training text there are where it is files, otherwise None."""
    if not all(Path(path).is_file() for path in data.inputs):
        return None
    options = text_options(data)
    return estimate_text_bytes(find_sources(data.inputs, options), options)
