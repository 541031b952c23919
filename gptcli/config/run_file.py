"""Run files as commands read them: the two kinds, told apart, and those that lie in the directory of a run."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.config.schema import Section
from gptcli.config.train import PretrainConfig

if TYPE_CHECKING:
    from gptcli.config.yaml_file import Loaded

T = TypeVar("T", bound=Section)
MOVED = "where the run file lies"


def kind_of_run_file(text: str) -> Any:
    """Return FinetuneConfig where the file names a task or a base, else PretrainConfig."""
    if not _has_key(text, "task|base"):
        return PretrainConfig
    from gptcli.config.finetune import FinetuneConfig  # many keys, which pretraining need not read

    return FinetuneConfig


def load_run_file(kind: type[T] | None, path: str, overrides: Sequence[str], *, resume: bool = False) -> Loaded[T]:
    """Load a run file of one kind, None for either, overrides on top; of a file of the other kind only that is said,
    not each of its keys.

    To resume, the run.yaml of a run that was moved or copied names the directory where it lies.
    """
    from gptcli.config import yaml_file

    text = yaml_file.read(path)  # once: it may be a pipe
    try:
        loaded = yaml_file.parse(kind or kind_of_run_file(text), text, name=path, overrides=overrides)
        return _where_it_lies(loaded, path) if resume else loaded
    except ConfigError:
        of_finetune = _has_key(text, "task|base")
        name = escape(path, 1000)
        if kind is PretrainConfig and of_finetune:
            raise ConfigError(f"{name}: is a run file of gptcli finetune; name one of gptcli pretrain") from None
        if kind not in (PretrainConfig, None) and not of_finetune and _has_key(text, "model|tokenizer"):
            raise ConfigError(f"{name}: is a run file of gptcli pretrain; name one of gptcli finetune") from None
        raise


def _where_it_lies(loaded: Loaded[T], path: str) -> Loaded[T]:
    """Return the run with the directory of its run.yaml as run_dir, where its checkpoints lie beside it."""
    own, config = os.path.dirname(path) or ".", typing.cast(Any, loaded.value)
    moved = is_of_a_run(path) and not loaded.origins["run_dir"].startswith("-s ")
    if not moved or os.path.realpath(own) == os.path.realpath(config.run_dir):
        return loaded
    config = dataclasses.replace(config, run_dir=own)
    return dataclasses.replace(loaded, value=config, origins={**loaded.origins, "run_dir": MOVED})


def is_of_a_run(path: str) -> bool:
    """Return whether a file is the run.yaml beside the checkpoints of a run."""
    return os.path.basename(path) == "run.yaml" and os.path.isdir(os.path.join(os.path.dirname(path), "checkpoints"))


@contextmanager
def explaining_paths(path: str) -> Iterator[None]:
    """Add to an error about a file that is missing from where the relative paths of a run's own run.yaml count."""
    try:
        yield
    except ConfigError as error:
        if not is_of_a_run(path) or "no such file" not in str(error):
            raise
        hint = f"relative paths of {escape(path)} count from where the run was started; begin there"
        raise ConfigError(*error.problems[:-1], f"{error.problems[-1]}; {hint}") from None


def _has_key(text: str, names: str) -> bool:
    return re.search(rf"^({names})\s*:", text, re.MULTILINE) is not None
