"""Train a run file with every combination of some values, or by successive halving, and compare what comes out.

    sweep_dir/trial-003/              a run directory like any other
    sweep_dir/round-1/trial-003/      in successive halving

What is finished is not trained again, and what was stopped goes on: the same command is how a sweep is resumed. Trials
that began with other settings than they have now are refused, but for more steps, to which they go on; and so are
trials that read other text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.api.finetune import finetune
from gptcli.api.input_hashes import InputHashes
from gptcli.api.pretrain import pretrain
from gptcli.base.errors import ConfigError, DataError, NumericalError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config import yaml_file
from gptcli.config.run_file import load_run_file
from gptcli.config.schema import Section
from gptcli.config.sweep import SweepConfig
from gptcli.config.train import PretrainConfig
from gptcli.config.yaml_file import Loaded
from gptcli.observe.history import metrics_of, read_run
from gptcli.train.autoconfig import AutoConfig
from gptcli.train.checkpoint_paths import checkpoints, find_checkpoint
from gptcli.train.lineage import read_lineage
from gptcli.train.metrics import number_of
from gptcli.train.resume import CONTENT, as_it_began, changes


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    number: int  # from 1
    round: int  # from 1; of a grid always 1
    settings: tuple[str, ...]  # KEY=VALUE
    loaded: Loaded[Section]

    @property
    def run_dir(self) -> Path:
        config: Any = self.loaded.value
        return Path(config.run_dir)


@dataclass(frozen=True)
class Result:
    """A trial with what it came to."""

    trial: Trial
    state: str
    step: int
    score: float | None  # the best of its validations; None where there is none yet


@dataclass(frozen=True)
class Sweep:
    """All results, the best first, those of later rounds before those of earlier ones."""

    metric: str
    results: tuple[Result, ...]
    exit_code: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        trials = [
            {
                "run_dir": str(result.trial.run_dir),
                "round": result.trial.round,
                "settings": dict(setting.split("=", 1) for setting in result.trial.settings),
                "state": result.state,
                "step": result.step,
                self.metric: result.score,
            }
            for result in self.results
        ]
        return {"metric": self.metric, "trials": trials}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of a table."""
        keys = [setting.partition("=")[0] for setting in self.results[0].trial.settings]
        rows = [
            [
                str(result.trial.run_dir),
                *(setting.partition("=")[2] for setting in result.trial.settings),
                f"{result.step:,}",
                "-" if result.score is None else f"{result.score:.4f}",
                result.state,
            ]
            for result in self.results
        ]
        return ["run", *keys, "step", self.metric, "state"], rows


def sweep(config: SweepConfig, report: Report, *, part: tuple[int, int] = (1, 1)) -> Sweep:
    """Train what is not trained yet and return all results. `part`: of how many parts of a grid which is trained here,
    counted from 1; every run file is checked first, all problems in one ConfigError."""
    if config.first_steps and part != (1, 1):
        raise ConfigError("--part: a round of successive halving needs the whole round before it; leave it out")
    rounds = _rounds(config)
    _check_settings(config, [trial for trials in rounds for trial in trials])
    numbers = list(range(len(rounds[0])))
    metric = config.metric or ("bits_per_byte" if _is_pretraining(rounds[0][0]) else "loss_nats")
    reached: list[list[Result]] = []
    exit_code = 0
    for trials in rounds:
        for number in [number for number in numbers if number % part[1] == part[0] - 1]:
            exit_code = exit_code or _train(trials[number], len(numbers), report)
            if exit_code:
                report.message("the sweep goes on with the same command")
                break
        best = min if config.best == "lowest" else max
        reached.append(_ranked([_result(trials[number], metric, best) for number in numbers], config))
        if exit_code:
            break
        kept = reached[-1][: math.ceil(len(numbers) / config.keep_one_in)]
        numbers = sorted(result.trial.number - 1 for result in kept)
    return Sweep(metric, tuple(result for results in reversed(reached) for result in results), exit_code)


def _is_pretraining(trial: Trial) -> bool:
    return isinstance(trial.loaded.value, PretrainConfig)


def _rounds(config: SweepConfig) -> list[list[Trial]]:
    """Return the trials of every round, of a grid its one, each with its run file as it is trained."""
    first = _trials(config, 1, None)
    if config.first_steps is None:
        return [first]
    value = first[0].loaded.value
    if not isinstance(value, PretrainConfig):
        raise ConfigError("first_steps: successive halving is for run files of gptcli pretrain; remove it")
    steps = [config.first_steps]
    while steps[-1] < value.train.steps:
        steps.append(min(steps[-1] * config.keep_one_in, value.train.steps))
    return [_trials(config, number, each) for number, each in enumerate(steps, 1)]


def _trials(config: SweepConfig, round_number: int, steps: int | None) -> list[Trial]:
    """Load the run file of every trial of a round; ConfigError with the problems of all."""
    found: list[Trial] = []
    problems: list[str] = []
    where = Path(config.sweep_dir) if config.first_steps is None else Path(config.sweep_dir) / f"round-{round_number}"
    for number, settings in enumerate(config.trials(), 1):
        more = [] if steps is None else [f"train.steps={steps}"]
        overrides = [*settings, *more, f"run_dir={where / f'trial-{number:03d}'}"]
        try:
            loaded: Loaded[Section] = load_run_file(None, config.run_file, overrides)
        except ConfigError as error:
            problems += error.problems
            continue
        found.append(Trial(number, round_number, settings, loaded))
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return found


def _check_settings(config: SweepConfig, trials: Sequence[Trial]) -> None:
    """Raise DataError where the directory of a trial holds a run with other settings, or of other text."""
    told: list[str] = []
    inputs = InputHashes()
    for trial in trials:
        if (settings := _settings(trial)) is not None:
            now, before = settings
            changed = changes(now, dataclasses.asdict(now), dataclasses.asdict(before))
            told += [f"{escape(str(trial.run_dir))}: {change}" for change in changed.values()]
            if not changed and _reads_other_text(trial, inputs):
                told.append(f"{escape(str(trial.run_dir))}: {CONTENT['content.inputs']}")
    if told:
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        raise DataError(
            f"{'; '.join(told[:3])}{more}: trials of other settings or text lie there; restore them, or name another "
            f"sweep_dir than {escape(config.sweep_dir)}"
        )


def _settings(trial: Trial) -> tuple[Any, Any] | None:
    """Return the settings of a trial, and those that its run has begun with; None where it has not begun."""
    config, run_yaml = trial.loaded.value, trial.run_dir / "run.yaml"
    if not run_yaml.is_file():
        return None
    if isinstance(config, PretrainConfig):
        config = AutoConfig(trial.loaded.origins, Report()).restore_choices(config, run_yaml)
    else:
        config = as_it_began(config, run_yaml)
    return config, yaml_file.load(type(config), run_yaml).value


def _reads_other_text(trial: Trial, inputs: InputHashes) -> bool:
    """Return whether a trial has learnt from other files than its run file names now, as far as both are known."""
    if not checkpoints(trial.run_dir):
        return False
    lineage = read_lineage(find_checkpoint(str(trial.run_dir)))
    now = inputs.of(trial.loaded.value)
    return lineage is not None and now is not None and now != {source["sha256"] for source in lineage["inputs"]}


def _is_done(trial: Trial) -> bool:
    """Return whether a trial is finished, with all of the settings that it has now."""
    settings = _settings(trial)
    return settings is not None and settings[0] == settings[1] and read_run(trial.run_dir).state == "finished"


def _train(trial: Trial, trials: int, report: Report) -> int:
    """Train a trial to its end, unless it is there; return the exit code of what stopped it, or 0."""
    if _is_done(trial):
        return 0
    report.message(f"\ntrial {trial.number}, {count(trials, 'trial')} in this round: {', '.join(trial.settings)}")
    config: Any = trial.loaded.value
    try:
        if isinstance(config, PretrainConfig):
            return pretrain(config, resume=True, report=report, origins=trial.loaded.origins).exit_code
        return finetune(config, resume=True, report=report).exit_code
    except NumericalError as error:
        report.warning(f"trial {trial.number} is given up: {error}")
        return 0


def _result(trial: Trial, metric: str, best: Callable[[Sequence[float]], float]) -> Result:
    """Return what a trial has come to; DataError where its validations have no such number."""
    if not trial.run_dir.is_dir():
        return Result(trial, "empty", 0, None)
    facts = read_run(trial.run_dir)
    records = metrics_of(str(trial.run_dir)) if facts.step else []
    validations = [record for record in records if record["kind"] == "validation"]
    scores = [score for record in validations if (score := number_of(record, metric)) is not None]
    if validations and not scores:
        known = sorted(name for name in validations[-1] if name not in ("kind", "step"))
        raise DataError(f"metric: no {escape(metric)} in {escape(str(trial.run_dir))}; there are {', '.join(known)}")
    return Result(trial, facts.state, facts.step, best(scores) if scores else None)


def _ranked(results: Sequence[Result], config: SweepConfig) -> list[Result]:
    """Return results, the best first, those without a score last."""
    sign = 1 if config.best == "lowest" else -1
    return sorted(results, key=lambda result: math.inf if result.score is None else sign * result.score)
