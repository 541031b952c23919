"""Errors, escaping, units, reports, signals and durable files: what every other package stands on. Imports no torch."""

import sys

if sys.platform == "win32":
    raise ImportError(
        "gptcli runs on Linux and macOS; on Windows run it in WSL: https://learn.microsoft.com/windows/wsl"
    )
