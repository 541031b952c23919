"""Write a report of an unexpected error, with what helps to mend it, to a file. Standard library only."""

from __future__ import annotations

import os
import platform
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from gptcli import __version__
from gptcli.base.places import user_cache

PACKAGES = ("torch", "tokenizers", "safetensors", "numpy", "click", "rich", "tqdm", "pyyaml")
RUN_FILE_BYTES = 1 << 16


def write_report(arguments: Sequence[str], error: BaseException) -> Path | None:
    """Write versions, command line, run file and traceback to a new file; None where no directory takes one."""
    versions = [f"gptcli {__version__}", f"Python {platform.python_version()} on {platform.platform()}"]
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    parts = [
        "\n".join(versions),
        f"command line: {list(arguments)}",
        *_run_files(arguments),
        "".join(traceback.format_exception(error)),
    ]
    content = "\n\n".join(parts).encode("utf-8", "backslashreplace")
    cache = user_cache()
    for directory in (*([cache / "crashes"] if cache else []), Path(tempfile.gettempdir())):
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            path.write_bytes(content)
            return path
    return None


def _run_files(arguments: Sequence[str]) -> list[str]:
    """Return the content of the run files that the command line names."""
    found = []
    for argument in arguments:
        if argument.endswith((".yaml", ".yml")):
            with suppress(OSError, ValueError), open(argument, "rb") as file:
                found.append(f"{argument}:\n{file.read(RUN_FILE_BYTES).decode('utf-8', 'backslashreplace')}")
    return found
