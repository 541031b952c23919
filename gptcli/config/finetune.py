"""The run file of `gptcli finetune` and the sections that only it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gptcli.config.schema import Section, is_name, number, value
from gptcli.config.train import OptimConfig, RuntimeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsConfig(Section):
    """What is learnt from: rows with named fields; for task text, text as in pretraining."""

    train: tuple[str, ...] = value(doc="JSONL, CSV or TSV with a header row (.gz too), directories, globs")
    validation: tuple[str, ...] = value((), "held-out inputs; empty: a part of `train` is held out")
    validation_fraction: float = number(0.1, "share of the rows held out where `validation` is empty", ge=0, lt=1)
    text_field: str = value("text", "task classify and text: the text")
    label_field: str = value("label", "task classify: the label")
    prompt_field: str = value("prompt", "task instruct: what the model is given")
    completion_field: str = value("completion", "task instruct: what it shall write")
    messages_field: str = value("messages", "task chat: a list of {role, content}")
    max_tokens: int | None = number(None, "a longer row loses its end, null: the model's context", ge=2)
    on_bad_line: Literal["error", "skip"] = value("error", "a line that is no row of the task: stop, or skip and count")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.train:
            yield "train", "no input; name a file"


Pooling = Literal["last", "average"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig(Section):
    """How labels are learnt (task classify)."""

    pooling: Literal["last", "average"] = value(
        "average", "who names the label: the last token, or the mean of what it says and of what all tokens say"
    )
    class_weights: Literal["none", "balanced"] = value("none", "balanced: rare labels count more, each label alike")
    label_smoothing: float = number(0.1, "share of a target spread over all labels", ge=0, lt=1)
    token_dropout: float = number(0.3, "share of a text's tokens hidden while training", ge=0, lt=1)
    every_token_weight: float = number(
        0.9, "share of the loss that asks each token, not only the last, for the label", ge=0, lt=1
    )
    text_loss_weight: float = number(0.0, "of predicting the text itself; it doubles the time of a small model", ge=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): the base stays as it is, and a small file is learnt."""

    rank: int = number(8, "of the change to each matrix", ge=1, le=4096)
    alpha: float = number(16.0, "the change is scaled by alpha / rank", gt=0)
    targets: tuple[Literal["attention", "mlp"], ...] = value(("attention", "mlp"), "the matrices that are adapted")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.targets:
            yield "targets", "name attention, mlp or both"


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig(Section):
    """How long, in what batches, and what happens on the way. A row is an example; for task text, a window."""

    epochs: float = number(3.0, "times that every row is seen", gt=0, le=1e6)
    batch_size: int = number(16, "rows in an optimizer step", ge=1, le=1 << 24)
    micro_batch_tokens: int = number(8192, "tokens in one forward pass, at least one row", ge=1)
    dropout: float | None = number(None, "on embeddings, attention and sub-layers, null: the base's", ge=0, lt=1)
    frozen_blocks: int = number(0, "first blocks that stay as they are; with any, the embedding does too", ge=0)
    log_every_steps: int = number(10, "a metrics line", ge=1)
    evals_per_epoch: int = number(1, "validations, each with a checkpoint; always after the last step, too", ge=1)
    patience: int | None = number(None, "stop after so many validations without a better one; null: never", ge=1)
    keep_checkpoints: int = number(2, "newest checkpoints kept, beside the best", ge=2)
    sample_prompt: str = value("", "written on after each validation (tasks instruct, chat and text); empty: no sample")
    sample_tokens: int = number(64, "length of the sample", ge=1)
    tensorboard: bool = value(False, "also write the metrics as TensorBoard scalars, to run_dir/tensorboard")


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(Section):
    """A whole fine-tuning run."""

    run_dir: str = value(doc="directory of the run: run.yaml, metrics.jsonl, checkpoints/")
    base: str = value(doc="the run or checkpoint to begin with")
    task: Literal["classify", "instruct", "chat", "text"] = value(doc="classify, instruct, chat or text")
    data: RowsConfig
    classify: ClassifyConfig = field(default_factory=ClassifyConfig)
    lora: LoraConfig | None = None  # null: all weights are trained
    optim: OptimConfig = field(default_factory=lambda: OptimConfig.from_preset("finetune"))
    train: TuneConfig = field(default_factory=TuneConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from ((name, "must name a directory") for name in ("run_dir", "base") if not is_name(getattr(self, name)))
        if self.runtime.compile:
            yield "runtime.compile", "is for pretrain, whose steps have one shape; leave it out"
