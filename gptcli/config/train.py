"""The sections of training (`optim`, `train`, `runtime`), and the whole run file of `gptcli pretrain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from gptcli.base.units import seconds_of
from gptcli.config.data import DataConfig, TokenizerConfig
from gptcli.config.model import ModelConfig
from gptcli.config.schema import Section, is_name, number, value


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(Section):
    """Optimizer and learning-rate schedule. Rates are peaks; the schedule scales all of them together."""

    preset: str = value("modern", "named values for the fields below: modern (Muon + AdamW), classic (AdamW), finetune")
    name: Literal["muon", "adamw"] = value("muon", "optimizer of the matrices inside the blocks; AdamW has the rest")
    learning_rate: float = number(6e-3, "peak AdamW rate", gt=0, le=10)
    embedding_learning_rate: float | None = number(0.3, "peak rate of the embedding, null: learning_rate", gt=0, le=100)
    muon_learning_rate: float = number(0.02, "peak Muon rate of the matrices", gt=0, le=10)
    muon_momentum: float = number(0.95, "Nesterov momentum of Muon", ge=0, lt=1)
    muon_overhead: float = number(
        0.1,
        "FLOPs of Muon relative to the model's in a step, at most: in parts of matrices where whole ones cost more",
        gt=0,
        le=1e9,
    )
    beta1: float = number(0.9, "AdamW", ge=0, lt=1)
    beta2: float = number(0.99, "AdamW", ge=0, lt=1)
    eps: float = number(1e-10, "AdamW", gt=0, le=1)
    weight_decay: float = number(0.0, "decoupled decay of matrices (vectors and embeddings have none)", ge=0, le=10)
    grad_clip_norm: float = number(0.0, "clip the gradient's global L2 norm; 0 is off", ge=0, le=1e9)
    schedule: Literal["linear", "cosine", "constant"] = value("linear", "form of the decay after warm-up")
    warmup_steps: int = number(0, "linear rise from zero", ge=0)
    decay_fraction: float = number(0.7, "last part of the run in which the rate decays", ge=0, le=1)
    final_learning_rate_fraction: float = number(0.0, "rate at the end, relative to the peak", ge=0, le=1)

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
    """How long, in what batches, and what happens on the way. Counted in optimizer steps and tokens."""

    budget: str | None = value(None, "wall clock of the whole command (90s, 5m, 1.5h): sets sizes that are not given")
    steps: int = number(1000, "optimizer steps", ge=1, le=1 << 40)
    batch_size: int = number(16, "sequences in an optimizer step, over all devices", ge=1, le=1 << 24)
    micro_batch_size: int | None = number(
        None, "sequences in one forward pass, null: batch_size; on a CPU about 1,024 tokens of it", ge=1, le=1 << 24
    )
    log_every_steps: int = number(10, "a metrics line", ge=1)
    eval_every_steps: int = number(250, "validation; always after the last step, too", ge=1)
    patience: int | None = number(
        None, "stop after so many validations, of those with a checkpoint, without a better one; null: never", ge=1
    )
    eval_tokens: int | None = number(200_000, "of validation, from the beginning of the split, null: all", ge=1)
    save_every_steps: int = number(250, "a checkpoint; always after the last step, too", ge=1)
    keep_checkpoints: int = number(2, "newest checkpoints kept, beside the best", ge=2)
    sample_every_steps: int = number(250, "a sample of the model's text; 0 is off", ge=0)
    sample_prompt: str = value("", "start of the sample; empty: the model begins")
    sample_tokens: int = number(64, "length of the sample", ge=1)
    tensorboard: bool = value(False, "also write the metrics as TensorBoard scalars, to run_dir/tensorboard")

    @property
    def budget_seconds(self) -> float | None:
        return None if self.budget is None else seconds_of(self.budget)

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
    """Where and in what precision."""

    device: str = value("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16"] = value("auto", "of activations; weights are trained in float32")
    threads: int | None = number(None, "CPU threads, null: all cores this process may use", ge=1, le=4096)
    compile: bool | None = value(
        None, "torch.compile of each block, null: pretrain chooses, on a CPU by the run's time"
    )
    seed: int = number(1, "of initial weights, batches, dropout and samples", ge=0, lt=1 << 63)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(Section):
    """A whole pretraining run."""

    run_dir: str = value(doc="directory of the run: run.yaml, metrics.jsonl, checkpoints/")
    data: DataConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not is_name(self.run_dir):
            yield "run_dir", "must name a directory"
        if self.optim.warmup_steps >= self.train.steps:
            yield "optim", f"warmup_steps {self.optim.warmup_steps} must be below train.steps {self.train.steps}"
