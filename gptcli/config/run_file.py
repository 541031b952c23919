"""Run files as commands read them: the two kinds, told apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from gptcli.base.errors import ConfigError
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.schema import Section
from gptcli.config.train import PretrainConfig

if TYPE_CHECKING:
    from gptcli.config.yaml_file import Loaded

T = TypeVar("T", bound=Section)


def kind_of_run_file(text: str) -> Any:
    """FinetuneConfig where the file names a task or a base, else PretrainConfig."""
    return FinetuneConfig if _has_key(text, "task|base") else PretrainConfig


def load_run_file(kind: type[T] | None, path: str, overrides: Sequence[str]) -> Loaded[T]:
    """A run file of one kind, None for either, overrides on top; of a file of the other kind only that is said, not
    each of its keys."""
    from gptcli.config import yaml_file
    from gptcli.config.suggest import visible

    text = yaml_file.read(path)  # once: it may be a pipe
    try:
        return yaml_file.parse(kind or kind_of_run_file(text), text, name=path, overrides=overrides)
    except ConfigError:
        of_finetune = _has_key(text, "task|base")
        name = visible(path, 1000)
        if kind is PretrainConfig and of_finetune:
            raise ConfigError(f"{name}: is a run file of gptcli finetune; name one of gptcli pretrain") from None
        if kind is FinetuneConfig and not of_finetune and _has_key(text, "model|tokenizer"):
            raise ConfigError(f"{name}: is a run file of gptcli pretrain; name one of gptcli finetune") from None
        raise


def _has_key(text: str, names: str) -> bool:
    return re.search(rf"^({names})\s*:", text, re.MULTILINE) is not None
