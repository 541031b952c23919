"""A pretrained model of another program, whatever its files are: what import makes a checkpoint of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptcli.data.tokenizer import Tokenizer
from gptcli.model.gpt import GPT


@dataclass(frozen=True)
class Pretrained:
    """The facts in a model's files, the weights not read yet."""

    config: Mapping[str, Any]  # as config.json of transformers
    tokenizer: Tokenizer
    template: str | None  # of its conversations
    token_names: Mapping[str, str]  # bos_token, eos_token, ... that the template may use
    origin: Mapping[str, str]  # the text of the files beside the weights, by name, for the way back
    left_behind: list[str]  # what of the files has no place in a checkpoint
    read_model: Callable[[], GPT]
