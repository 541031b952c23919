"""The same seed gives the same weights with dropout: in every task, with one thread and two, two micro-batches at a
time, whatever else draws random numbers in the process, and after --resume."""

import functools
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli, Tiny

from gptcli.config.finetune import LoraConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig
from gptcli.data.example import Example
from gptcli.data.packing import ExampleBatches
from gptcli.device.runtime import Runtime
from gptcli.model import dropout
from gptcli.model.gpt import GPT
from gptcli.model.lora import add_adapters
from gptcli.tasks.classify import LabelObjective
from gptcli.train.loop import train_step
from gptcli.train.loss import next_token_nats
from gptcli.train.optimizers import make_optimizers
from gptcli.train.state import TrainState
from gptcli.train.step import GradientStep, Objective
from gptcli.train.step_paired import PairedStep, run_in_two_threads

STEPS = 6
LABELS = LabelObjective(torch.ones(2), 0.1, 0.5, 0.1, blank=0)


def make_state(task: str) -> TrainState:
    model = GPT(ModelConfig(num_layers=2, hidden_size=32, num_heads=2, context_length=32, vocab_size=60, dropout=0.2))
    model.initialize(torch.Generator().manual_seed(1))
    if task == "classify":
        model.add_label_head(2, torch.Generator().manual_seed(2))
    if task == "lora":
        add_adapters(model, LoraConfig(rank=4), torch.Generator().manual_seed(3))
    model.train()
    optim = OptimConfig.from_preset("finetune")
    return TrainState(model, make_optimizers(model, optim, step_tokens=256, dtype=torch.float32))


def examples(task: str) -> list[Example]:
    generator = torch.Generator().manual_seed(4)
    found = []
    for number in range(40):
        ids = torch.randint(1, 60, (5 + number % 20,), generator=generator).tolist()
        label = number % 2 if task == "classify" else None
        found.append(Example(f"row {number}", ids, [task != "classify"] * len(ids), label, truncated=False))
    return found


def weights_after(task: str, threads: int, *, paired: bool = True) -> str:
    """The weights' hash after STEPS steps of 5 micro-batches or so."""
    state = make_state(task)
    if not paired:
        state.gradient_step = GradientStep(state.model, state.optimizers)
    batches = ExampleBatches(examples(task), batch_size=12, micro_batch_tokens=40, seed=5, token_dropout=0.1)
    objective: Objective = LABELS if task == "classify" else next_token_nats
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runtime = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=threads)
        for number in range(STEPS):
            step = batches(number)
            assert len(list(step.micro_batches)) > 2
            state.step = number
            train_step(state, step, 1.0, runtime, seed=7, objective=objective)
    finally:
        torch.set_num_threads(before)
    digest = hashlib.sha256()
    for weight in state.model.parameters():
        digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("task", ["classify", "chat", "lora"])
def test_one_seed_one_result(task: str) -> None:
    assert isinstance(make_state(task).gradient_step, PairedStep)
    results = {weights_after(task, 2) for _ in range(3)}
    assert len(results) == 1
    alone = weights_after(task, 1)
    assert alone == weights_after(task, 1, paired=False)
    if task != "lora":  # where a product with 4 rows is added up in another order by two threads
        assert results == {alone}


def test_what_others_draw_changes_nothing() -> None:
    """Nor does training draw from the generator that all threads share, on a CPU."""
    wanted = weights_after("classify", 2)
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            torch.rand(100)

    other = threading.Thread(target=draw)
    other.start()
    try:
        assert weights_after("classify", 2) == wanted
    finally:
        done.set()
        other.join()
    before = torch.get_rng_state()
    weights_after("classify", 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_masks_depend_on_the_seed_alone() -> None:
    x = torch.ones(1000)
    dropout.seed(11, numpy=True)
    wanted = dropout.dropout(x, 0.3)
    torch.manual_seed(5)
    dropout.seed(11, numpy=True)
    assert torch.equal(dropout.dropout(x, 0.3), wanted)
    dropout.seed(12, numpy=True)
    assert not torch.equal(dropout.dropout(x, 0.3), wanted)


def test_two_threads_take_each_task_once() -> None:
    """With Python's lock and, in a build without it, without."""
    threads = torch.get_num_threads()
    taken: list[int] = []

    def take(number: int) -> int:
        taken.append(number)
        return number

    try:
        assert run_in_two_threads([functools.partial(take, n) for n in range(5000)], 2) == list(range(5000))
    finally:
        torch.set_num_threads(threads)
    assert sorted(taken) == list(range(5000))


# ------------------------------------------------------------------------------------------------- the real command


def sha256_of(run: Path) -> dict[str, str]:
    paths = sorted((run / "latest").glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows(task: str) -> list[dict[str, Any]]:
    texts = [f"the {word} number {i}" for i in range(12) for word in ("good", "bad", "odd")]
    match task:
        case "classify":
            return [{"text": text, "label": text.split()[1]} for text in texts]
        case "chat":
            said = [({"role": "user", "content": t}, {"role": "assistant", "content": t[::-1]}) for t in texts]
            return [{"messages": list(messages)} for messages in said]
    return [{"prompt": text, "completion": " " + text[::-1]} for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("task", ["classify", "chat", "instruct", "lora", "text"])
def test_the_command_repeats_and_resumes_bit_for_bit(
    task: str, threads: int, tiny: Tiny, run_cli: RunCli, tmp_path: Path
) -> None:
    data = tiny.corpus
    if task != "text":
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(task)))
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        f"run_dir: {tmp_path / 'one'}\nbase: {tiny.checkpoint}\ntask: {'instruct' if task == 'lora' else task}\n"
        f"data: {{train: [{data}]}}\n"
        "train: {epochs: 2, batch_size: 8, micro_batch_tokens: 64, dropout: 0.2}\n"
        f"runtime: {{threads: {threads}}}\n" + ("lora: {rank: 4}\n" if task == "lora" else "")
    )
    more = ("-s", "train.epochs=0.5") if task == "text" else ()
    environment = {"OMP_NUM_THREADS": str(threads)}
    assert run_cli("finetune", run_file, "-q", *more, env=environment).code == 0
    for other in ("two", "three"):
        again = (*more, "-s", f"run_dir={tmp_path / other}")
        assert run_cli("finetune", run_file, "-q", *again, env=environment).code == 0
    assert sha256_of(tmp_path / "two") == sha256_of(tmp_path / "one")
    resumed = tmp_path / "three"
    newest = max((resumed / "checkpoints").iterdir())
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert run_cli("finetune", resumed / "run.yaml", "--resume", "-q", env=environment).code == 0
    assert sha256_of(resumed) == sha256_of(tmp_path / "one")
