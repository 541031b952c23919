"""A model's forward pass without what nn.Module and PyTorch spend on every call: a tenth of the time of one text.

Without `disable_torch_function`, a call with an argument that is no tensor (a dtype, a packed weight) looks for its
__torch_function__, and the exception that ends the search takes microseconds.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from gptcli.device.private_torch import disable_torch_function
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT, Layout
from gptcli.model.layers import Scale

M = TypeVar("M", bound=nn.Module)


class ForwardView:
    """A model, to be used for its forward pass, and a view of it for the same at less expense.

    The view shares the model's tensors. It finds parameters and parts without nn.Module.__getattr__, and parts of its
    blocks are bound `forward`s, called without a look for hooks. The model is left as it is: where a part of it has a
    hook, the model itself is used.
    """

    def __init__(self, model: GPT, runtime: Runtime) -> None:
        self.model, self.runtime, self.modules = model, runtime, list(model.modules())
        self.view = _view(model, inside_block=False)
        self.used = self.view

    def hear_hooks(self) -> None:
        """Use the model itself from now on where a part of it has a hook, else the view."""
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.modules)
        self.used = self.model if hooked else self.view

    def hidden(self, ids: list[list[int]], layout: Layout) -> Tensor:
        """Map ids (B, T) -> the head's input (B, T, C)."""
        with disable_torch_function():
            batch = torch.tensor(ids, device=self.runtime.device)
            return self.used.hidden(batch, dtype=self.runtime.dtype, layout=layout)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V), float32 on the CPU, of the head's input (..., C)."""
        with disable_torch_function():
            return self.used.logits(hidden).cpu()


def _view(module: M, *, inside_block: bool) -> M:
    """Return a module of the same class and tensors that is no part of any other."""
    view = object.__new__(type(module))
    parts = dict(module._modules)
    if isinstance(module, GPT):
        parts["blocks"] = [_view(block, inside_block=True).forward for block in module.blocks]  # type: ignore[assignment]
    elif inside_block:
        for name, part in module.named_children():
            if not isinstance(part, Scale):  # of which only the weight is read
                parts[name] = _view(part, inside_block=True).forward  # type: ignore[assignment]
    view.__dict__.update(module.__dict__)
    view.__dict__.update(module._parameters)
    view.__dict__.update(module._buffers)
    view.__dict__.update(parts)
    return view
