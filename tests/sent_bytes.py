"""Print the bytes that two processes send in a step over the loopback device, and what gptcli plan says."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from ranks import in_processes

from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.data.batches import Batch
from gptcli.data.packing import counted
from gptcli.device.processes import Processes
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.observe.memory import Workload
from gptcli.observe.plan_processes import sent_bytes
from gptcli.observe.plan_sharded import sharded_sent_bytes
from gptcli.train.initial import sharded_state
from gptcli.train.loop import train_step
from gptcli.train.optimizers import make_optimizers
from gptcli.train.sharded import Sharded
from gptcli.train.state import TrainState

MODEL = ModelConfig(num_layers=4, hidden_size=128, num_heads=4, context_length=32, vocab_size=512)
MICRO_BATCHES, STEPS = 4, 5
RUNTIME = Runtime(torch.device("cpu"), torch.float32, 1)


def on_the_wire() -> int:
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.partition(":")[2].split()[8])


def step(processes: Processes, exchange: str) -> Any:
    """The bytes of some steps after one, of both processes together; `sharded` is an exchange here, too."""
    model = GPT(MODEL)
    model.initialize(torch.Generator().manual_seed(1))
    if exchange == "sharded":
        sharded = Sharded(model, processes, RUNTIME)
        state = sharded_state(sharded, OptimConfig(), RUNTIME, step_tokens=256)
    else:
        optimizers = make_optimizers(model, OptimConfig(), step_tokens=256, dtype=torch.float32)
        processes = dataclasses.replace(processes, config=dataclasses.replace(processes.config, exchange=exchange))
        state = TrainState(model, optimizers, processes=processes)
    ids = torch.randint(512, (2, 32), generator=torch.Generator().manual_seed(1))
    before = 0
    for number in range(STEPS + 1):
        if number == 1:
            processes.largest(0)
            before = on_the_wire()
        batch = counted([Batch(ids, ids, "made up")] * MICRO_BATCHES)
        train_step(state, batch, 0.0, RUNTIME, seed=1)
    processes.largest(0)
    return (on_the_wire() - before) // STEPS


if __name__ == "__main__":
    with torch.device("meta"):
        work = Workload(GPT(MODEL), OptimConfig(), 2, MICRO_BATCHES, 4, on_cpu=True)
    if sys.argv[1] == "sharded":
        planned = sharded_sent_bytes(work, 2, "micro_batch")
    else:
        planned = sent_bytes(work, 2, sys.argv[1])
    print(min(in_processes(2, step, sys.argv[1])), 2 * planned)
