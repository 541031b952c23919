"""The defaults of an imported model for drawing from it: generation_config.json, for what a person leaves open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptcli.base.report import Report
from gptcli.config.generate import GenerateOptions
from gptcli.config.schema import keys_of
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import read_metadata

NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def with_makers_defaults(run: str | Path, given: dict[str, Any], report: Report) -> GenerateOptions:
    """Return the options that were given, and the makers' for those of NAMES that were not; the report is told which.

    As in transformers they hold where `do_sample` is true. A temperature of 0 that was given leaves nothing to draw.
    """
    chosen = GenerateOptions(**given)
    if chosen.temperature == 0:
        return chosen
    theirs = {name: value for name, value in makers_defaults(run).items() if name not in given}
    if not theirs:
        return chosen
    said = ", ".join(f"{name} {value:g}" for name, value in theirs.items())
    report.message(f"drawn as the model's makers advise (generation_config.json): {said}; an option of yours wins")
    return GenerateOptions(**given, **theirs)


def makers_defaults(run: str | Path) -> dict[str, Any]:
    """Return the sampling options of a checkpoint's generation_config.json that gptcli has, without those it would
    refuse or that change nothing."""
    try:
        document = json.loads(read_metadata(find_checkpoint(run)).origin.get("generation_config.json", "{}"))
    except ValueError:
        return {}
    if not isinstance(document, dict) or document.get("do_sample") is not True:
        return {}
    found: dict[str, Any] = {}
    for name in NAMES:
        value = document.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (name == "top_k" and value == 0):
            continue
        value = value if name == "top_k" else float(value)
        if keys_of(GenerateOptions)[name].problem(value) is None:
            found[name] = value
    return found
