"""Libraries that only some commands want."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gptcli.base.errors import ConfigError


def extra(module: str, name: str, purpose: str) -> Any:
    """Return a module of an optional dependency. ConfigError names what to install where it is not there."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{package} is not installed, which is needed to {purpose}; pip install 'gptcli[{name}]'"
        ) from None
