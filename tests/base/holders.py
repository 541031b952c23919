"""A process that holds a lock, and the names in a directory, for tests."""

import subprocess
import sys
from pathlib import Path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that has said `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


HOLD = """
import sys
from pathlib import Path
from gptcli.base import fsio
with fsio.locked(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""
