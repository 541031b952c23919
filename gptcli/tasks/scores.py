"""The reward of an answer that a model wrote: whether it is right, whether it has a pattern, or what a function of the
user says of it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptcli.base.errors import ConfigError, DataError, GptcliError
from gptcli.base.escape import escape
from gptcli.config.finetune import RewardConfig, RowsConfig
from gptcli.data.example import Example, named_by
from gptcli.data.rows import Row
from gptcli.data.text import file_sha256

Score = Callable[[str, Example], float]  # of an answer to a row


def right_answer(fields: Mapping[str, Any], data: RowsConfig, place: str) -> str:
    """Return the right answer of a row: text, or a number or boolean as JSON writes it."""
    answer = fields.get(data.answer_field)
    if isinstance(answer, (bool, int, float)):
        return json.dumps(answer)
    return Row(place, dict(fields)).text(data.answer_field, advice=named_by("answer_field")).strip()


def make_score(options: RewardConfig, data: RowsConfig) -> Score:
    """Return the reward of an answer, as a run file says; ConfigError where its function is not there."""
    if options.function is not None:
        return _function_score(options.function)
    if options.regex is None:
        return lambda answer, row: float(answer.strip() == right_answer(row.row or {}, data, row.place))
    pattern = re.compile(options.regex)

    def score(answer: str, row: Example) -> float:
        found = pattern.search(answer)
        if found is None or not pattern.groups:
            return float(found is not None)
        return float((found[1] or "").strip() == right_answer(row.row or {}, data, row.place))

    return score


def _function_score(named: str) -> Score:
    """Return what a Python function says of (answer, fields of the row): a finite number."""
    function = load_function(named)

    def score(answer: str, row: Example) -> float:
        try:
            found = float(function(answer, dict(row.row or {})))
        except Exception as error:  # whatever somebody else's code raises
            reason = f"{type(error).__name__}: {escape(str(error))}"
            raise GptcliError(f"reward.function: {escape(named)} of {row.place}: {reason}") from error
        if not math.isfinite(found):
            raise DataError(f"reward.function: {escape(named)} of {row.place} is {found}; return a finite number")
        return found

    return score


def load_function(named: str) -> Callable[..., Any]:
    """Run the file of FILE.py:NAME and return the function; ConfigError where there is none."""
    path, _, name = named.rpartition(":")
    spec = importlib.util.spec_from_file_location("gptcli_reward", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ConfigError(f"reward.function: {escape(path)}: no such Python file; write FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"reward.function: {escape(path)} has no function {escape(name)}")
    return function


def content(options: RewardConfig) -> dict[str, Any]:
    """Return what identifies the code of a reward: the hash of its file."""
    if options.function is None:
        return {}
    path = Path(options.function.rpartition(":")[0])
    return {"reward": file_sha256(path) if path.is_file() else None}
