"""Several processes score sequences together: what each gets has the bits of one process, and each computes a share."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from ranks import assert_shares_of_one, counting

from gptcli.config.model import ModelConfig
from gptcli.config.train import RuntimeConfig
from gptcli.device.processes import Processes
from gptcli.device.runtime import make_runtime
from gptcli.evaluate import scoring
from gptcli.evaluate.scoring import Sequence, score_sequences
from gptcli.model.gpt import GPT

SIZES: dict[str, Any] = {
    "vocab_size": 60, "num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 32,
}  # fmt: skip


def scored(processes: Processes, greedy: bool) -> tuple[list[Any], int, int]:
    """Score 40 sequences in batches of 64 tokens -> the nats, the passes of the model here, and the rounds."""
    scoring.CPU_BATCH_TOKENS = 64
    model = GPT(ModelConfig.from_preset("modern", **SIZES))
    model.initialize(torch.Generator().manual_seed(1))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(2))
    draw = random.Random(1)
    lengths = [draw.randrange(1, 30) for _ in range(40)]
    sequences = [Sequence([draw.randrange(60) for _ in range(n)], draw.randrange(1, 30)) for n in lengths]
    counted = counting(model, processes)
    runtime = make_runtime(RuntimeConfig(device="cpu", dtype="float32", threads=1))
    found = score_sequences(model, sequences, runtime, greedy=greedy, together=counted.together)
    return [(each.nats.tolist(), each.greedy) for each in found], counted.passes, counted.rounds


@pytest.mark.parametrize("greedy", [False, True])
def test_scores_of_several_processes_have_the_bits_of_one(greedy: bool) -> None:
    assert_shares_of_one(scored, greedy)
