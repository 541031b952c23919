"""Imported once by the server that forks the trials: everything a command needs, and no thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # trials use two threads, and others this machine
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

import gptcli.api.evaluate
import gptcli.api.generate
import gptcli.api.pretrain
import gptcli.cli.main
import gptcli.train.run

torch.set_num_threads(1)

# The peak of the machine is measured for a figure that no proof looks at, for a quarter of a second.
gptcli.train.run.matmul_flops_per_second = lambda _: None  # type: ignore[assignment]
