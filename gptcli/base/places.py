"""The places of what outlives a command and belongs to no output. Standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from gptcli.base import fsio
from gptcli.base.errors import GptcliError
from gptcli.base.escape import escape


def user_cache() -> Path | None:
    """Return `gptcli` in the user's cache, None where no home directory is known, as for an unknown user in a
    container."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "gptcli"
    home = os.path.expanduser("~")
    return None if home == "~" else Path(home) / ".cache" / "gptcli"


def cache_directory(configured: str | None) -> Path:
    """Return the directory for prepared data and tokenizers: as configured, else the user's cache; make it.

    GptcliError where there is none that takes files, with the key that names another.
    """
    path = Path(configured) if configured else user_cache()
    mend = "set data.cache_dir or XDG_CACHE_HOME to a directory where you may write"
    if path is None:
        raise GptcliError(f"data.cache_dir: there is no home directory to keep prepared data in; {mend}")
    try:
        fsio.check_writable(path / "work", force=True)
    except OSError as error:
        raise GptcliError(f"{escape(str(error.filename or path))}: {error.strerror}; {mend}") from None
    return path
