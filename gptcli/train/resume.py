"""The check that a run file goes on with the run that a directory holds."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.config import yaml_file
from gptcli.config.schema import Section, all_keys, keys_with

T = TypeVar("T", bound=Section)

CONTENT = {
    "content.tokenizer": "the tokenizer has changed",
    "content.inputs": "the text or the rows have changed",
    "content.teacher": "the teacher has changed",
    "content.reward": "the code of the reward has changed",
}


def as_it_began(config: T, run_yaml: Path) -> T:
    """Return the config with, for keys that an older run.yaml lacks, the values that the version of then went by."""
    before = keys_with(type(config), "before")
    try:
        given = yaml_file.given_keys(type(config), run_yaml)
    except ConfigError:
        raise DataError(
            f"{escape(str(run_yaml))}: holds a run of another kind, or is damaged; name another run_dir"
        ) from None
    for dotted, value in before.items():
        section, _, name = dotted.partition(".")
        inner = getattr(config, section)
        if dotted not in given and getattr(inner, name) == getattr(type(inner)(), name):
            config = dataclasses.replace(
                typing.cast(Any, config), **{section: dataclasses.replace(inner, **{name: value})}
            )
    return config


def check_same_run(run_dir: Path, config: Section, run_file: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise DataError where what identifies a run, its run file and hashes of what it reads, is not what was saved."""
    changed = changes(config, run_file, saved)
    if not changed:
        return
    mend = f"restore that, resume {escape(str(run_dir / 'run.yaml'))}, or name another run_dir"
    if any(name.startswith(("optim.", "content.inputs", "data.")) for name in changed):
        mend += "; to train its weights further in another way: gptcli finetune with task: text"
    raise DataError(f"{escape(str(run_dir))}: cannot resume: {', '.join(changed.values())}; {mend}")


def changes(config: Section, run_file: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, str]:
    """Return by their names what identifies a run and has changed since it was saved, each as a clause.

    A key that the saved run file does not have yet stands for what runs without it did; one that means nothing in this
    run, such as those of another task, which older versions took, is passed over.
    """
    old, new = (_flat(json.loads(json.dumps(values))) for values in (saved, run_file))
    for dotted, key in all_keys(type(config)):
        if dotted in new and dotted not in old:
            default = key.default(None)
            default = list(default) if isinstance(default, tuple) else default  # as JSON has it
            old[dotted] = key.fact("before") if key.fact("before") is not None else default
            if default is MISSING:
                del old[dotted]
    may_change, unread = keys_with(type(config), "may_change"), tuple(f"{key}." for key in config.unread())
    changed = sorted(
        name
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name) and name not in may_change and not f"{name}.".startswith(unread)
    )
    return {name: CONTENT.get(name) or _change(name, old.get(name), new.get(name)) for name in changed}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _change(name: str, old: Any, new: Any) -> str:
    plain = not isinstance(old, list) and not isinstance(new, list)
    return f"{name} is {_told(new)}, was {_told(old)}" if plain else f"{name} has changed"


def _told(value: Any) -> str:
    return "null" if value is None else escape(value if isinstance(value, str) else json.dumps(value), 40)
