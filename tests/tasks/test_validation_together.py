"""Several processes validate held-out rows together: each gets the numbers of one process, and computes a share."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from ranks import assert_shares_of_one, counting

from gptcli.config.model import ModelConfig
from gptcli.config.train import RuntimeConfig
from gptcli.data.example import Example
from gptcli.device.processes import Processes
from gptcli.device.runtime import make_runtime
from gptcli.evaluate import scoring
from gptcli.model.gpt import GPT
from gptcli.tasks.classify import _validate as validate_labels
from gptcli.tasks.instruct import validate_targets
from gptcli.train.metadata import ModelMetadata

SIZES: dict[str, Any] = {
    "vocab_size": 60, "num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 32,
}  # fmt: skip


def validated(processes: Processes, task: str) -> tuple[dict[str, Any], int, int]:
    """Validate 40 rows in batches of 64 tokens -> the record, the passes of the model here, and the rounds."""
    scoring.CPU_BATCH_TOKENS = 64
    model = GPT(ModelConfig.from_preset("modern", **SIZES), labels=3)
    model.initialize(torch.Generator().manual_seed(1))
    for head in (model.head, model.label_head):
        assert head is not None
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(2))
    draw = random.Random(1)
    rows = []
    for number, size in enumerate(draw.randrange(2, 30) for _ in range(40)):
        ids = [draw.randrange(60) for _ in range(size)]
        learnt = [False] + [draw.random() < 0.7 for _ in ids[1:-1]] + [True]
        rows.append(Example(f"row {number}", ids, learnt, draw.randrange(3), False))
    counted = counting(model, processes)
    runtime = make_runtime(RuntimeConfig(device="cpu", dtype="float32", threads=1))
    if task == "classify":
        metadata = ModelMetadata(labels=("a", "b", "c"))
        found = validate_labels(model, rows, runtime, counted.together, metadata=metadata)
    else:
        found = validate_targets(model, rows, runtime, counted.together)
    return found.record, counted.passes, counted.rounds


@pytest.mark.parametrize("task", ["classify", "instruct"])
def test_a_validation_of_several_processes_is_that_of_one(task: str) -> None:
    assert assert_shares_of_one(validated, task) > 6
