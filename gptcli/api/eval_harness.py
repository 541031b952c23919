"""Measure a checkpoint on tasks of lm-eval."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.interop.special_tokens import begins_with, token_names
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.loaded_model import LoadedModel


@dataclass(frozen=True)
class HarnessResult:
    """The result of `gptcli eval-harness`. `tasks`: name -> {shots, rows, version, metrics: {name: {value,
    stderr}}}."""

    checkpoint: str
    lm_eval: str
    tasks: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint, "lm_eval": self.lm_eval, "tasks": self.tasks}

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        found = []
        for name, task in self.tasks.items():
            for metric, at in task["metrics"].items():
                value = "-" if at["value"] is None else f"{at['value']:.4f}"
                found.append(
                    (f"{name} {metric}", value + (f" ± {at['stderr']:.4f}" if at["stderr"] is not None else ""))
                )
            found.append((f"{name} rows", f"{task['rows']}, {count(task['shots'], 'shot')}"))
        return [*found, ("checkpoint", self.checkpoint), ("lm-eval", self.lm_eval)]


def eval_harness(
    run: str | Path,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    as_hf: bool = False,
    report: Report,
    **how: Unpack[DeviceOptions],
) -> HarnessResult:
    """Run lm-eval's tasks, its own by name or those of YAML files below `include_path`, on a model.

    `as_hf`: contexts begin as those of lm-eval's own hf model, so that its numbers can be repeated.

    ConfigError where lm-eval is missing or knows no such task. Only tasks whose data lie elsewhere use the network.
    """
    if not tasks:
        raise ConfigError("--tasks: names no task; see lm-eval ls tasks")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from gptcli.evaluate.lm_eval import Beginning, HarnessModel
    except ImportError as error:
        raise ConfigError(f"lm-eval cannot be imported ({escape(str(error))}); pip install 'gptcli[eval]'") from None
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"--include-path: {escape(include_path)}: no such directory")
    directory = find_checkpoint(run)
    manager = TaskManager(include_path=include_path)
    known = set(manager.all_tasks)
    for name in tasks:
        if name not in known:
            raise ConfigError(
                f"--tasks: lm-eval knows no task '{escape(name)}'; see lm-eval ls tasks, or --include-path"
            )
    opened = open_model(directory, **how)
    beginning = Beginning(*hf_beginning(opened)) if as_hf else None
    model = HarnessModel(opened.model, opened.tokenizer, opened.runtime, beginning)
    found = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager, log_samples=False
    )
    if model.truncated:
        report.warning(f"{model.truncated} requests did not fit the context and lost their beginning")
    results = {name: _task(name, found) for name in found["results"]}
    return HarnessResult(str(directory), lm_eval.__version__, results)


def hf_beginning(opened: LoadedModel) -> tuple[int | None, int]:
    """Return the ids that transformers puts before every text (None: nothing), and that lm-eval takes for a text
    without a context: bos_token, else eos_token. ConfigError where the model has neither."""
    tokenizer, origin = opened.tokenizer, opened.metadata.origin
    ids = tokenizer.specials
    if not origin:
        if tokenizer.begin is None:
            raise ConfigError("--as-hf: the tokenizer has no token that begins a text; leave it out")
        return None, tokenizer.begin
    settings = json.loads(origin.get("tokenizer_config.json", "{}"))
    names = token_names(settings, json.loads(origin.get("special_tokens_map.json", "{}")))
    added = begins_with(tokenizer.plain_content, settings, names)
    prefix = next((ids[names[name]] for name in ("bos_token", "eos_token") if names.get(name) in ids), None)
    if prefix is None:
        raise ConfigError("--as-hf: the model names neither bos_token nor eos_token; leave it out")
    return ids.get(added or ""), prefix


def _task(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return one task's part of lm-eval's results. Its keys are METRIC,FILTER and METRIC_stderr,FILTER."""
    values = {key: value for key, value in found["results"][name].items() if "," in key}
    metrics = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if not metric.endswith("_stderr"):
            stderr = values.get(f"{metric}_stderr,{chosen}")
            title = metric if chosen == "none" else f"{metric} ({chosen})"
            metrics[title] = {"value": _finite(value), "stderr": _finite(stderr)}
    return {
        "shots": found["n-shot"].get(name),
        "rows": found["n-samples"].get(name, {}).get("effective"),
        "version": found["versions"].get(name),
        "metrics": metrics,
    }


def _finite(value: Any) -> float | None:
    """Return a finite number, or None for the N/A or NaN that lm-eval writes where there is no value."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
