"""gptcli: a command-line workbench for GPT language models.

    data (bytes -> text -> tokens -> batches) -> model (logits) -> train (loss, step, checkpoint)
    checkpoint -> generate (text), evaluate (numbers)

Begin with model/gpt.py, train/loop.py and train/step.py. `api` has a function for every verb of the command line;
`gptcli.load` gives a trained model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from gptcli.data.tokenizer import Tokenizer
    from gptcli.model.gpt import GPT
    from gptcli.train.loss import Output

__version__ = "0.1.0"
__all__ = ["__version__", "forward", "load"]


def load(path: str | Path) -> tuple[GPT, Tokenizer]:
    """Return the model, in eval mode, and the tokenizer of a run or checkpoint directory. Imports torch on first
    use."""
    from gptcli.api import open_model

    return open_model.load(path)


def forward(model: GPT, ids: Tensor, *, labels: Tensor | None = None) -> Output:
    """Return `.logits` (B, T, V) of ids (B, T) and, if `labels` are given, their mean cross-entropy `.loss` in nats.

    Labels are as in Hugging Face: `labels=ids` learns every next token, -100 leaves one out.
    """
    from gptcli.train import loss

    return loss.forward(model, ids, labels=labels)
