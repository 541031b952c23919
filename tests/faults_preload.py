"""Imported once by the server that forks the trials: everything a command needs, and no thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import torch._dynamo  # the first optimizer imports it, in two seconds

import gptcli.cli
import gptcli.runs.evaluate
import gptcli.runs.generate
import gptcli.runs.pretrain  # noqa: F401  # the last of them, for all

torch.set_num_threads(1)
