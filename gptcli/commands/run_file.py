"""Run files as commands read them: the two kinds, told apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gptcli.config import FinetuneConfig, PretrainConfig, Section
from gptcli.errors import ConfigError

if TYPE_CHECKING:
    from gptcli.configfile import Loaded

T = TypeVar("T", bound=Section)


def kind_of_run_file(path: str | Path) -> Any:
    """FinetuneConfig where the file names a task or a base, else PretrainConfig; a file that is not there is neither,
    and reading it says so."""
    return FinetuneConfig if _has_key(path, "task|base") else PretrainConfig


def load_run_file(kind: type[T], path: str, overrides: Sequence[str]) -> Loaded[T]:
    """A run file of one kind, overrides on top; of a file of the other kind only that is said, not each of its keys."""
    from gptcli import configfile

    try:
        return configfile.load(kind, path, overrides)
    except ConfigError:
        of_finetune = _has_key(path, "task|base")
        name = configfile.visible(path, 1000)
        if issubclass(kind, PretrainConfig) and of_finetune:
            raise ConfigError(f"{name}: is a run file of gptcli finetune; name one of gptcli pretrain") from None
        if issubclass(kind, FinetuneConfig) and not of_finetune and _has_key(path, "model|tokenizer"):
            raise ConfigError(f"{name}: is a run file of gptcli pretrain; name one of gptcli finetune") from None
        raise


def _has_key(path: str | Path, names: str) -> bool:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return False
    return re.search(rf"^({names})\s*:", text, re.MULTILINE) is not None
