"""torch.compile of what a training step repeats: the blocks, on whole windows."""

from __future__ import annotations

import functools
from typing import Any

import torch

from gptcli.base.errors import ConfigError
from gptcli.device.threads import second_thread
from gptcli.model.gpt import GPT


def compile_blocks(model: GPT) -> None:
    """Have the blocks compiled at the next training step. ConfigError where this machine compiles nothing.

    The passes over memory between matrix products become one each, and Python's part is gone, which is most of a step
    where the model is narrow. PyTorch keeps the code, so that the next run compiles in a few seconds.
    """
    device = model.embedding.weight.device
    if reason := unable_to_compile(device):
        raise ConfigError(f"runtime.compile: nothing can be compiled here ({reason}); set it to false")
    options = _options(device)
    model.compiled_blocks = [torch.compile(block.forward, dynamic=False, options=options) for block in model.blocks]


@functools.cache
def unable_to_compile(device: torch.device) -> str:
    """Return why this machine compiles nothing for the device, an empty string where it does."""
    if device.type == "cpu":
        second_thread()  # begins before the compiler's threads
    try:
        torch.compile(_double, dynamic=False, options=_options(device))(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler, its files or its cache lack
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _options(device: torch.device) -> dict[str, Any] | None:
    """Return the compiler's options. cpp_wrapper releases Python's lock: two threads run compiled blocks at once."""
    return {"cpp_wrapper": True} if device.type == "cpu" else None


def _double(x: torch.Tensor) -> torch.Tensor:
    return x * 2
