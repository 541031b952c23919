"""The common part of all training, pretraining and fine-tuning alike: a run directory, resuming, metrics, stopping.

runs/demo/
  run.yaml  metrics.jsonl  lock
  checkpoints/step-000500/ ...
  latest -> checkpoints/...   best -> checkpoints/...

A kind of training is a Job: its batches, what it minimises, how it is validated and sampled.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.errors import GptcliError, NumericalError, is_out_of_memory
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.signals import Stop, Stopped, stop_on_signals
from gptcli.base.units import count
from gptcli.config.schema import Section
from gptcli.config.train import OptimConfig, TrainConfig
from gptcli.data.batches import Step
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import ALONE, BY_ONE, Processes, Together
from gptcli.device.runtime import Runtime, matmul_flops_per_second
from gptcli.model.gpt import GPT, evaluating
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import checkpoints
from gptcli.train.checkpoint_sharded import restore_parts, save_parts
from gptcli.train.deadline import Deadline
from gptcli.train.lineage import make_lineage
from gptcli.train.loop import Hooks, due, train
from gptcli.train.metadata import ModelMetadata
from gptcli.train.metrics import Record
from gptcli.train.micro_batches import micro_batch_rows
from gptcli.train.resume import check_same_run
from gptcli.train.retention import keep, newest_verified, tidy
from gptcli.train.run_directory import trim_metrics, write_run_file
from gptcli.train.state import ScheduleRescale, TrainState
from gptcli.train.step import Objective

PATIENCE_ENDS = 1 << 16  # in place of a signal's number


class Validation(NamedTuple):
    """A measurement on held-out data."""

    score: float  # decides which checkpoint is the best: the lowest
    record: dict[str, Any]  # fields of its line in metrics.jsonl
    text: str  # for a person
    note: str  # the same in a few words, for the progress line


@dataclass(frozen=True)
class Job:
    """A kind of training."""

    command: str  # of the command line, to say how to go on
    origin: str  # what the weights are at step 0
    config: Section  # the whole run file
    run_file: dict[str, Any]  # the same and hashes of what the run reads: they identify it
    run_dir: Path
    optim: OptimConfig
    train: TrainConfig
    seed: int
    tokenizer: Tokenizer
    batches: Callable[[int], Step]
    objective: Objective
    validate: Callable[[GPT, Together], Validation | None]
    sample: Callable[[GPT], str]
    description: str  # of the data and the steps, for the first message
    metadata: ModelMetadata = field(default_factory=ModelMetadata)
    patience: int | None = None  # stop after so many validations without a better one
    sources: Sequence[Mapping[str, Any]] = ()  # the inputs, with name and sha256, for the lineage
    facts: Callable[[int], Record] | None = None  # of a step, for its line in metrics.jsonl
    carried: dict[str, Tensor] = field(default_factory=dict)  # what its batches leave from step to step
    less_memory: str = ""  # what to set where memory runs out; empty: as in pretraining


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    run_dir: Path
    step: int
    finished: bool
    exit_code: int  # 0, or 130/143 where a signal ended it
    validation: Validation | None  # the last

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object, with the validation as metrics.jsonl has it."""
        validation = None if self.validation is None else self.validation.record
        return {**vars(self), "run_dir": str(self.run_dir), "validation": validation}


class Training:
    """A job under way, in a directory that the caller holds locked."""

    def __init__(
        self,
        job: Job,
        runtime: Runtime,
        report: Report,
        deadline: Deadline | None = None,
        *,
        processes: Processes = ALONE,
        also_record: AbstractContextManager[Callable[[Record], None]] | None = None,
    ) -> None:
        """Prepare to run `job`; `also_record` gives a function that receives every record of metrics.jsonl as well."""
        self.job, self.runtime, self.report, self.processes = job, runtime, report, processes
        self.run_dir = job.run_dir
        self.also_record = also_record or nullcontext(lambda _record: None)
        self.deadline = deadline or Deadline(None, job.train, pause_seconds=0.0)
        self.metrics_path = job.run_dir / "metrics.jsonl"
        self.validation: Validation | None = None
        self.validated_step = -1
        self.resumed_step: int | None = None
        self.exhausted = False  # no better validation for as long as the job's patience lasts

    def go(self, state: TrainState, *, resume: bool) -> Outcome:
        """Train from `state`, or from the directory's newest whole checkpoint if `resume`, to the last step or to a
        signal."""
        job = self.job
        found = self._newest() if resume else None
        if found is not None:
            self._restore(state, found)
            self.resumed_step = state.step
        self._check_patience(state)
        done = (state.step >= state.last_step(job.train.steps) or self.exhausted) and not state.post_step_pending
        self._describe(state, resumed=found is not None)
        self.processes.by_first(lambda: self._begin(state, done=done, resumed=found is not None))
        if done:
            self.report.message(f"already done at step {state.step}; raise train.steps or train.epochs to go on")
            return Outcome(self.run_dir, state.step, True, 0, None)
        again = f"gptcli {job.command} {self.run_dir / 'run.yaml'} --resume"

        def announce() -> None:
            self.report.message("stopping and saving; once more to stop at once")

        with (
            stop_on_signals(announce) as stop,
            self._recording(state) as write,
        ):
            for warning in fsio.take_warnings():
                self.report.warning(warning)
            finished = self._train(state, stop, write) or self.exhausted
            if finished:
                write({"kind": "end", "step": state.step})
        if not finished:
            self.report.message(f"stopped and saved at step {state.step}; go on with: {again}")
        exit_code = 0 if finished or not self.processes.is_first else stop.exit_code  # the first ends last
        return Outcome(self.run_dir, state.step, finished, exit_code, self.validation)

    def _newest(self) -> Path | None:
        """Return the newest whole checkpoint, which one process looks for."""
        found = newest_verified(self.run_dir, self.report.warning) if self.processes.is_first else None
        name = self.processes.share(None if found is None else str(found))
        return None if name is None else Path(name)

    def _begin(self, state: TrainState, *, done: bool, resumed: bool) -> None:
        """Bring the directory to where the run goes on."""
        trim_metrics(self.metrics_path, state)
        write_run_file(self.run_dir / "run.yaml", self.job.config)
        if done:
            with fsio.appending(self.metrics_path) as metrics:
                self._writer(metrics, lambda _: None, state)({"kind": "end", "step": state.step})
        elif resumed:
            tidy(self.run_dir, state, self.job.train.keep_checkpoints)

    @contextmanager
    def _recording(self, state: TrainState) -> Iterator[Callable[[Record], None]]:
        """Give what writes a record; of several processes the first writes all."""
        if not self.processes.is_first:
            yield lambda _record: None
            return
        with fsio.appending(self.metrics_path) as metrics, self.also_record as also_record:
            yield self._writer(metrics, also_record, state)

    def _train(self, state: TrainState, stop: Stop, write: Callable[[Record], None]) -> bool:
        """Return the loop; what stops it for good is told with what to do about it."""
        job, timed = self.job, self.deadline.timed

        def evaluate(state: TrainState) -> None:
            self._evaluate(state, stop, write)

        def sample(state: TrainState) -> None:
            if state.sharded is not None:
                self._sample(state, stop, write)
            else:
                self.processes.by_first(lambda: self._sample(state, stop, write))

        hooks = Hooks(
            evaluate=timed("evaluate", evaluate),
            save=timed("save", self._save),
            sample=timed("sample", sample),
            report=write,
            keep_time=self._keep_time,
            stop=lambda: self._stops(stop),
        )
        try:
            return train(
                state,
                job.batches,
                job.train,
                job.optim,
                self.runtime,
                hooks,
                seed=job.seed,
                peak_flops=self._peak_flops(),
                objective=job.objective,
            )
        except NumericalError as error:
            last = checkpoints(self.run_dir)
            kept = f"the last good checkpoint is {last[0].name}" if last else "no checkpoint was written yet"
            raise NumericalError(f"{error}; {kept}") from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            context_length, on_cpu = state.model.config.context_length, self.runtime.on_cpu
            advice = job.less_memory or less_memory(job.train, context_length, on_cpu=on_cpu)
            raise GptcliError(f"step {state.step + 1}: out of memory; {advice}") from None

    def _peak_flops(self) -> float | None:
        """Return the peak of all processes together."""
        peak = matmul_flops_per_second(self.runtime)
        return None if peak is None else peak * self.processes.count

    def _stops(self, stop: Stop) -> bool:
        """Return whether a signal to any process, or the job's patience, ends the run: the same in all of them."""
        number = self.processes.largest(stop.signal or (PATIENCE_ENDS if self.exhausted else 0))
        if number == PATIENCE_ENDS:
            self.exhausted = True
        elif number:
            stop.signal = stop.signal or number
            stop()
        return number != 0

    def _keep_time(self, state: TrainState, step_seconds: float) -> None:
        """Keep the deadline by the first process's clock."""
        self.deadline.keep(state, step_seconds)
        if not self.processes.alone:
            stretch = self.processes.share(
                None if state.schedule_rescale is None else dataclasses.asdict(state.schedule_rescale), in_step=True
            )
            state.schedule_rescale = None if stretch is None else ScheduleRescale(**stretch)

    def _restore(self, state: TrainState, directory: Path) -> None:
        training = fsio.read_json(directory / "training.json")
        check_same_run(self.run_dir, self.job.config, self.job.run_file, training.get("run", {}))
        if training.get("threads") != torch.get_num_threads() or training.get("torch") != torch.__version__:
            self.report.warning(
                f"the run used torch {training.get('torch')} with {training.get('threads')} threads, this is "
                f"{torch.__version__} with {torch.get_num_threads()}: the result may differ in the last bits"
            )
        restore = checkpoint.restore if state.sharded is None else restore_parts
        restore(state, directory)

    def _describe(self, state: TrainState, *, resumed: bool) -> None:
        how = f"resumed at step {state.step}" if resumed else self.job.origin
        self.report.message(
            f"{how}: {state.model.num_parameters():,} parameters, {self.job.description}, "
            f"{self.runtime.device} {str(self.runtime.dtype).removeprefix('torch.')}, "
            f"{count(self.runtime.threads, 'thread')}"
            + ("" if self.processes.alone else f" in each of {self.processes.count} processes")
            + ("" if state.sharded is None else ", which have a part of the model each")
        )

    def _writer(self, file: Any, also_record: Callable[[Record], None], state: TrainState) -> Callable[[Record], None]:
        def write(record: Record) -> None:
            if self.job.facts is not None and record["kind"] == "train":
                record = {**record, **self.job.facts(record["step"])}
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
            file.write((json.dumps(finite, allow_nan=False, ensure_ascii=False) + "\n").encode())
            file.flush()
            also_record(finite)
            if record["kind"] == "train":
                note = f"loss {record['loss_nats']:.3f}  {record['tokens_per_second']:,.0f} tokens/s"
                if self.validation is not None:
                    note += f"  {self.validation.note}"
                self.report.progress("train", record["step"], state.last_step(self.job.train.steps), note)

        return write

    def _evaluate(self, state: TrainState, stop: Stop, write: Callable[[Record], None]) -> None:
        def check() -> None:
            if self._stops(stop):
                raise Stopped

        if state.sharded is not None:  # a pass through the model is one of all processes
            together = Together(self.processes, check, lockstep=True)
            found = state.sharded.evaluate(lambda model: self.job.validate(model, together))
        elif not self.processes.alone:
            found = self.job.validate(state.model, Together(self.processes, check))
        else:
            with stop.at_once():
                found = self.job.validate(state.model, BY_ONE)
        if found is None:
            return
        self.validation, self.validated_step = found, state.step
        write({"kind": "validation", "step": state.step, **found.record})
        self.report.message(f"step {state.step}: {found.text}")

    def _sample(self, state: TrainState, stop: Stop, write: Callable[[Record], None]) -> None:
        if state.sharded is not None:
            with evaluating(state.model):
                text = state.sharded.evaluate(self.job.sample)
        else:
            with evaluating(state.model), stop.at_once():
                text = self.job.sample(state.model)
        write({"kind": "sample", "step": state.step, "text": text})
        self.report.message(f"step {state.step}: {escape(text, 300)}")

    def _save(self, state: TrainState) -> None:
        if state.sharded is not None:
            self._write_checkpoint(state)
            return
        state.gradient_step.collect_state()
        self.processes.by_first(lambda: self._write_checkpoint(state))
        state.gradient_step.drop_state()

    def _write_checkpoint(self, state: TrainState) -> None:
        found, train = self.validation, self.job.train
        # An unbroken run saves this step as well: one that a signal makes to be saved does not count for the best.
        planned = due(state.step, train.save_every_steps, state.last_step(train.steps)) and not state.post_step_pending
        if planned and found is not None and self.validated_step == state.step and found.score < state.best_score:
            state.best_score, state.best_step = found.score, state.step
        if state.step != self.resumed_step:  # else it was saved when the validation of this step was given up
            if self.processes.is_first:
                fsio.sync_file(self.metrics_path)
            job, save = self.job, checkpoint.save if state.sharded is None else save_parts
            lineage = make_lineage(job.run_file, job.tokenizer.sha256, job.sources)
            save(state, self.run_dir, job.tokenizer, job.run_file, job.metadata, lineage)
        keep(self.run_dir, state, train.keep_checkpoints)
        self._check_patience(state)

    def _check_patience(self, state: TrainState) -> None:
        """Set `exhausted` as a pure function of the step and the best one, so that a resumed run stops where an
        unbroken one does; not before the validation of the step is done."""
        if self.job.patience is not None and state.best_step is not None and not state.post_step_pending:
            self.exhausted = validations_since(state.best_step, state.step, self.job.train) >= self.job.patience


def validations_since(best_step: int, step: int, train: TrainConfig) -> int:
    """Return how many have been since the best one, of those that have a checkpoint."""
    both = math.lcm(train.eval_every_steps, train.save_every_steps)
    return step // both - best_step // both


def less_memory(train: TrainConfig, context_length: int, *, on_cpu: bool) -> str:
    """Return what to set for a run to need less memory: a quarter of the micro-batch first, which changes no
    gradient."""
    now = micro_batch_rows(train, context_length, on_cpu=on_cpu)
    largest = max(1, now // 4)
    smaller = next(size for size in range(largest, 0, -1) if train.batch_size % size == 0)
    if smaller < now:
        return f"set train.micro_batch_size={smaller} (it is {now}), which gives the same gradients"
    return f"set model.context_length={max(2, context_length // 2)} (it is {context_length}) or take a smaller model"
