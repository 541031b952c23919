"""The run file of `gptcli finetune` and the sections that only it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gptcli.config.distill import DistillConfig
from gptcli.config.loss import LossConfig
from gptcli.config.parallel import ParallelConfig
from gptcli.config.schema import Section, is_default, is_name, keys_with, number, value
from gptcli.config.train import OptimConfig, RuntimeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsConfig(Section):
    """The training rows, with named fields; for task text, text as in pretraining."""

    train: tuple[str, ...] = value(
        doc="JSONL, JSON arrays, Parquet, CSV or TSV with a header row, directories, globs", path=True
    )
    validation: tuple[str, ...] = value((), "inputs to validate on; empty: hold out a part of `train`", path=True)
    validation_fraction: float = number(0.1, "share of the rows to hold out where `validation` is empty", ge=0, lt=1)
    text_field: str = value("text", "field of the text (tasks classify and text)", tasks="classify text")
    label_field: str = value("label", "field of the label (task classify)", tasks="classify")
    prompt_field: str = value(
        "prompt", "field of the prompt (tasks instruct, chat, prefer and reward)", tasks="instruct chat prefer reward"
    )
    prompt_template: str = value(
        "",
        "prompt of several fields (instruct, prefer, reward): {instruction}\\n\\n{input}; empty paragraphs drop out",
        tasks="instruct prefer reward",
    )
    answer_field: str = value("answer", "field of the right answer (task reward)", tasks="reward")
    completion_field: str = value(
        "completion", "field of the completion (tasks instruct and chat)", tasks="instruct chat"
    )
    chosen_field: str = value("chosen", "field of the answer that is liked better (task prefer)", tasks="prefer")
    rejected_field: str = value("rejected", "field of the answer that is liked less (task prefer)", tasks="prefer")
    messages_field: str = value(
        "messages", "field of the conversation, a list of {role, content} or {from, value} (task chat)", tasks="chat"
    )
    turns: Literal["strict", "mend"] = value(
        "strict",
        "turns out of order (task chat): stop, or join neighbours, drop what does not fit, and count",
        tasks="chat",
    )
    encoding: str = value("utf-8", "encoding of the input files")
    errors: Literal["strict", "replace", "ignore"] = value("strict", "what to do with bytes that cannot be decoded")
    max_tokens: int | None = number(None, "truncate longer rows at their end; null: at the model's context", ge=2)
    on_bad_line: Literal["error", "skip"] = value(
        "error", "stop at a line that is no row of the task, or skip and count it"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.train:
            yield "train", "no input; name a file"
        if self.prompt_template and not re.search(r"\{\w+\}", self.prompt_template):
            yield "prompt_template", "names no field of a row; write one in braces, as {instruction}"


Pooling = Literal["last", "average"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyConfig(Section):
    """Classification head and loss (task classify)."""

    pooling: Literal["last", "average"] = value(
        "average", "classify from the last token, or average its probabilities with the mean over all tokens"
    )
    class_weights: Literal["none", "balanced"] = value("none", "balanced: weight the loss by inverse label frequency")
    label_smoothing: float = number(0.1, "share of the target spread evenly over all labels", ge=0, lt=1)
    token_dropout: float | None = number(
        None, "share of input tokens to mask while training; null: 0.3, and 0 for an imported model", ge=0, lt=1
    )
    every_token_weight: float = number(
        0.9, "share of the loss that classifies from every token, not only the last", ge=0, lt=1
    )
    text_loss_weight: float = number(
        0.0, "weight of a language-modelling loss on the text, for which the head takes every token", ge=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferConfig(Section):
    """Learning from pairs of answers (task prefer)."""

    loss: Literal["dpo", "ipo", "simpo", "orpo"] = value(
        "dpo", "dpo (Rafailov et al. 2023), ipo (Azar et al. 2023), simpo (Meng et al. 2024) or orpo (Hong et al. 2024)"
    )
    beta: float | None = number(
        None, "how close the model stays to the base; orpo: weight of the odds; null: 0.1, simpo 2", gt=0, le=1000
    )
    simpo_margin: float = number(1.0, "reward by which simpo wants the better answer ahead (gamma)", ge=0, le=1000)
    label_smoothing: float = number(
        0.0, "dpo: share of the pairs whose answers may stand in the wrong order", ge=0, lt=0.5
    )
    answers: int = number(
        8, "held-out prompts to answer at each validation, for the length of answers; 0: none", ge=0, may_change=True
    )

    @property
    def scale(self) -> float:
        """Return beta, of the loss's own where none is given."""
        return self.beta or (2.0 if self.loss == "simpo" else 0.1)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.label_smoothing and self.loss != "dpo":
            yield "label_smoothing", f"is for dpo; loss is {self.loss}; remove it"
        if self.loss != "simpo" and not is_default(self, "simpo_margin"):
            yield "simpo_margin", f"is for simpo; loss is {self.loss}; remove it"


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(Section):
    """Learning from rewards of the model's own answers (task reward): 1 for an answer that is data.answer_field, unless
    regex or function says otherwise."""

    regex: str | None = value(
        None, "1 for an answer in which this pattern is found; where it has a group, that must be data.answer_field"
    )
    function: str | None = value(
        None, "FILE.py:NAME, called with the answer and the row; run only with --allow-code", path=True
    )
    loss: Literal["grpo", "dr_grpo"] = value("grpo", "grpo (Shao et al. 2024) or dr_grpo (Liu et al. 2025)")
    group_size: int = number(8, "answers to each prompt, whose rewards are compared", ge=2, le=1024)
    max_tokens: int = number(64, "longest answer", ge=1, le=1 << 20)
    updates: int = number(1, "optimizer steps that learn from the same answers", ge=1, le=1000)
    clip: float = number(0.2, "furthest that a token's probability may go from what it was, relative to it", gt=0, lt=1)
    kl_weight: float = number(0.0, "weight of the KL divergence from the base (beta)", ge=0, le=1000)

    @property
    def needs_answer(self) -> bool:
        """Return whether every row needs the right answer."""
        return self.function is None and (self.regex is None or re.compile(self.regex).groups > 0)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.regex is not None:
            try:
                re.compile(self.regex)
            except re.error as error:
                yield "regex", f"is no pattern: {error}"
            if self.function is not None:
                yield "regex", "function says what the reward is; leave out one of the two"
        if self.function is not None and not re.fullmatch(r".+\.py:\w+", self.function):
            yield "function", f"write FILE.py:NAME, got {self.function!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): the base stays frozen and a small file is trained."""

    rank: int = number(8, "rank of the adapters", ge=1, le=4096)
    alpha: float = number(16.0, "scale the adapters' output by alpha / rank", gt=0)
    targets: tuple[Literal["attention", "mlp"], ...] = value(
        ("attention", "mlp"), "matrices to adapt: attention, mlp or both"
    )
    base_dtype: Literal["auto", "int8"] = value(
        "auto", "how frozen matrices are kept: as activations (runtime.dtype), or those with adapters in 8 bits"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.targets:
            yield "targets", "name attention, mlp or both"


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig(Section):
    """Length, batches, validation and checkpoints of a run. A row is an example; for task text, a window."""

    epochs: float = number(3.0, "passes over the rows", gt=0, le=1e6, may_change=True)
    batch_size: int = number(16, "rows per optimizer step", ge=1, le=1 << 24)
    micro_batch_tokens: int = number(8192, "tokens per forward pass, at least one row", ge=1)
    dropout: float | None = number(
        None, "dropout rate on embeddings, attention and sub-layers; null: the base's, none in task reward", ge=0, lt=1
    )
    frozen_blocks: int = number(0, "freeze this many first blocks, and with any the embedding", ge=0)
    log_every_steps: int = number(10, "steps between lines of metrics.jsonl", ge=1, may_change=True)
    evals_per_epoch: int = number(
        1, "validations per epoch, each with a checkpoint; one always follows the last step", ge=1
    )
    patience: int | None = number(None, "stop after this many validations without a better one; null: never", ge=1)
    keep_checkpoints: int = number(2, "newest checkpoints to keep, besides the best", ge=2, may_change=True)
    sample_prompt: str = value(
        "",
        "prompt of a sample after each validation (not of classify); empty: none",
        may_change=True,
        tasks="instruct chat text prefer reward",
    )
    sample_tokens: int = number(64, "length of a sample in tokens", ge=1, may_change=True)
    tensorboard: bool = value(False, "also write TensorBoard scalars, to run_dir/tensorboard", may_change=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(Section):
    """A whole fine-tuning run."""

    run_dir: str = value(doc="directory of the run: run.yaml, metrics.jsonl, checkpoints/", path=True, may_change=True)
    base: str = value(doc="run or checkpoint to start from", path=True)
    task: Literal["classify", "instruct", "chat", "text", "prefer", "reward"] = value(
        doc="classify, instruct, chat, text, prefer (pairs of answers) or reward (of the model's own answers)"
    )
    data: RowsConfig
    classify: ClassifyConfig = field(default_factory=ClassifyConfig, metadata={"tasks": "classify"})
    prefer: PreferConfig = field(default_factory=PreferConfig, metadata={"tasks": "prefer"})
    reward: RewardConfig = field(default_factory=RewardConfig, metadata={"tasks": "reward"})
    lora: LoraConfig | None = None  # null: all weights are trained
    optim: OptimConfig = field(default_factory=lambda: OptimConfig.from_preset("finetune"))
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig | None = None  # null: no teacher
    train: TuneConfig = field(default_factory=TuneConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from ((name, "must name a directory") for name in ("run_dir", "base") if not is_name(getattr(self, name)))
        tasks = keys_with(FinetuneConfig, "tasks")
        for dotted in sorted(self.unread()):
            if not is_default(self, dotted):
                others = " or ".join(tasks[dotted].split())
                yield dotted, f"is for task {others}, not for task {self.task}; leave it out"
        if self.task in ("classify", "prefer", "reward") and self.loss.goldfish is not None:
            yield "loss", f"goldfish is for text that is learnt by heart, not for task {self.task}; leave it out"
        if self.task in ("classify", "prefer", "reward") and self.distill is not None:
            yield "distill", f"is for tasks that learn text, not for task {self.task}; leave it out"
        if self.runtime.compile:
            yield "runtime.compile", "is for pretrain only, whose steps have one shape; leave it out"

    def unread(self) -> frozenset[str]:
        """Return the keys of other tasks."""
        tasks = keys_with(FinetuneConfig, "tasks")
        return frozenset(dotted for dotted in tasks if self.task not in tasks[dotted].split())
