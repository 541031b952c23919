"""The sections of training (`optim`, `train`, `runtime`), and the whole run file of `gptcli pretrain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from gptcli.base.units import parse_duration
from gptcli.config.data import DataConfig, TokenizerConfig
from gptcli.config.distill import DistillConfig
from gptcli.config.loss import LossConfig
from gptcli.config.model import ModelConfig
from gptcli.config.parallel import ParallelConfig
from gptcli.config.schema import Section, is_name, number, value


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(Section):
    """Optimizer and learning-rate schedule. Rates are peaks; the schedule scales all of them together."""

    preset: str = value("modern", "named values for the fields below: modern (Muon + AdamW), classic (AdamW), finetune")
    name: Literal["muon", "adamw"] = value(
        "muon", "optimizer of the matrices inside the blocks; AdamW updates the rest"
    )
    learning_rate: float = number(6e-3, "peak learning rate of AdamW", gt=0, le=10)
    embedding_learning_rate: float | None = number(
        0.3, "peak learning rate of the embedding; null: learning_rate", gt=0, le=100
    )
    muon_learning_rate: float = number(0.02, "peak learning rate of Muon", gt=0, le=10)
    muon_momentum: float = number(0.95, "Nesterov momentum of Muon", ge=0, lt=1)
    muon_momentum_ramp: float = number(
        0.1,
        "that momentum begins so much lower, and rises over the first fifth of a run, at most 300 steps",
        ge=0,
        lt=1,
        before=0.0,
    )
    normuon: bool = value(
        True, "divide Muon's update by running root mean squares of its rows or columns (Li et al. 2025)", before=False
    )
    muon_overhead: float = number(
        0.1,
        "most FLOPs that Muon may add to a step, relative to the model's; matrices are split into tiles to keep to it",
        gt=0,
        le=1e9,
        before=1e9,
    )
    beta1: float = number(0.9, "AdamW's decay rate of the first moment", ge=0, lt=1)
    beta2: float = number(0.99, "AdamW's decay rate of the second moment", ge=0, lt=1)
    eps: float = number(1e-10, "AdamW's epsilon", gt=0, le=1)
    weight_decay: float = number(
        0.0, "decoupled weight decay of matrices (not of vectors and embeddings)", ge=0, le=10, repeated=0.8
    )
    bigram_weight_decay: float = number(
        0.0, "decoupled weight decay of the embedding of token pairs (model.bigram_rows)", ge=0, le=10
    )
    cautious_decay: bool = value(
        False, "Muon decays only weights that its update makes smaller, too (Chen et al. 2025)", repeated=True
    )
    grad_clip_norm: float = number(0.0, "clip the global L2 norm of the gradient; 0: off", ge=0, le=1e9)
    schedule: Literal["linear", "cosine", "constant"] = value("linear", "shape of the learning-rate decay")
    warmup_steps: int = number(0, "steps of linear warm-up from zero", ge=0)
    decay_fraction: float = number(0.7, "last part of the run, over which the learning rate decays", ge=0, le=1)
    final_learning_rate_fraction: float = number(0.0, "learning rate at the end, relative to the peak", ge=0, le=1)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.muon_momentum_ramp > self.muon_momentum:
            yield "muon_momentum_ramp", f"must be at most muon_momentum {self.muon_momentum}; lower it, to 0 for none"

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "modern": {},
        "classic": {  # Brown et al. 2020, appendix B
            "name": "adamw",
            "learning_rate": 6e-4,
            "embedding_learning_rate": None,
            "beta2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "grad_clip_norm": 1.0,
            "schedule": "cosine",
            "decay_fraction": 1.0,
            "final_learning_rate_fraction": 0.1,
        },
        "finetune": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "embedding_learning_rate": None,
            "beta2": 0.98,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "grad_clip_norm": 1.0,
            "decay_fraction": 1.0,
        },
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Section):
    """Length, batches, validation and checkpoints of a run. Counted in optimizer steps and tokens."""

    budget: str | None = value(
        None, "wall-clock time for the whole run (90s, 5m, 1.5h); chooses the sizes left open", may_change=True
    )
    steps: int = number(1000, "optimizer steps", ge=1, le=1 << 40, may_change=True, auto=True)
    batch_size: int = number(16, "sequences per optimizer step", ge=1, le=1 << 24, auto=True)
    micro_batch_size: int | None = number(
        None,
        "sequences per forward pass; null: batch_size, on a CPU about 1,024 tokens",
        ge=1,
        le=1 << 24,
        may_change=True,
    )
    log_every_steps: int = number(10, "steps between lines of metrics.jsonl", ge=1, may_change=True, auto=True)
    eval_every_steps: int = number(
        250, "steps between validations; one always follows the last step", ge=1, may_change=True, auto=True
    )
    patience: int | None = number(
        None, "stop after this many saved validations without a better one; null: never", ge=1, auto=True, repeated=3
    )
    eval_tokens: int | None = number(
        200_000, "tokens to validate on, from the start of the split; null: all", ge=1, may_change=True, auto=True
    )
    save_every_steps: int = number(
        250, "steps between checkpoints; one always follows the last step", ge=1, may_change=True, auto=True
    )
    keep_checkpoints: int = number(2, "newest checkpoints to keep, besides the best", ge=2, may_change=True)
    sample_every_steps: int = number(250, "steps between samples of text; 0: none", ge=0, may_change=True, auto=True)
    sample_prompt: str = value("", "prompt of the samples; empty: the model begins", may_change=True)
    sample_tokens: int = number(64, "length of a sample in tokens", ge=1, may_change=True)
    tensorboard: bool = value(False, "also write TensorBoard scalars, to run_dir/tensorboard", may_change=True)

    @property
    def budget_seconds(self) -> float | None:
        return None if self.budget is None else parse_duration(self.budget)

    @property
    def micro_batch(self) -> int:
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    @property
    def micro_steps(self) -> int:
        return self.batch_size // self.micro_batch

    def problems(self) -> Iterator[tuple[str, str]]:
        try:
            _ = self.budget_seconds
        except ValueError as error:
            yield "budget", str(error)
        if self.batch_size % self.micro_batch:
            yield "micro_batch_size", f"{self.micro_batch} does not divide batch_size {self.batch_size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig(Section):
    """Device, precision, threads and seed."""

    device: str = value(
        "auto", "auto (cuda where there is one, otherwise cpu), cpu, cuda, cuda:1, mps", may_change=True
    )
    dtype: Literal["auto", "float32", "bfloat16"] = value("auto", "precision of activations; weights are float32")
    threads: int | None = number(
        None,
        "CPU threads; null: OMP_NUM_THREADS, or the CPUs that affinity, container and Slurm allow",
        ge=1,
        le=4096,
        may_change=True,
    )
    compile: bool | None = value(
        None,
        "torch.compile the blocks; null: pretrain does on a CPU where the run is long enough",
        may_change=True,
        auto=True,
    )
    activation_checkpointing: bool = value(
        False,
        "store only the input of each block and compute the rest again for the backward pass: less memory, a third "
        "more work",
        may_change=True,
    )
    seed: int = number(1, "random seed of initial weights, batches, dropout and samples", ge=0, lt=1 << 63)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Section):
    """A whole pretraining run."""

    run_dir: str = value(doc="directory of the run: run.yaml, metrics.jsonl, checkpoints/", path=True, may_change=True)
    data: DataConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig | None = None  # null: no teacher
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not is_name(self.run_dir):
            yield "run_dir", "must name a directory"
        if self.optim.warmup_steps >= self.train.steps:
            yield "optim", f"warmup_steps {self.optim.warmup_steps} must be below train.steps {self.train.steps}"
