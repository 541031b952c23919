"""Learning from rewards: advantages and loss beside the papers' formulas in float64, and the task as users run it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Result, RunCli, Tiny
from torch import Tensor

from gptcli.base import fsio
from gptcli.config.finetune import RewardConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import RuntimeConfig
from gptcli.data.example import Example
from gptcli.data.packing import pack
from gptcli.device.runtime import make_runtime
from gptcli.model.gpt import GPT
from gptcli.tasks.reward import RewardObjective, advantages

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 24, "vocab_size": 50}
REWARDS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0.5, 2, -1, 0]], dtype=torch.float64)


def model_of(seed: int) -> GPT:
    model = GPT(ModelConfig.from_preset("gpt2", **SHAPE, tie_embeddings=False))
    model.initialize(torch.Generator().manual_seed(seed))
    model.head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model


def answers(values: list[float]) -> list[Example]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for number, value in enumerate(values):
        ids = torch.randint(50, (6 + number,), generator=draw).tolist()
        made.append(Example("here", ids, [False] * 4 + [True] * (2 + number), None, False, value=value))
    return made


def log_p(model: GPT, example: Example) -> Tensor:
    """Of the tokens of an answer, alone in a batch and in float64."""
    ids = torch.tensor([example.ids])
    logits = F.linear(model.hidden(ids, dtype=torch.float64), model.head.weight)[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[3:, 0]


def test_advantages_are_relative_to_the_group() -> None:
    grpo = advantages(REWARDS, RewardConfig(loss="grpo"))
    for row, rewards in zip(grpo, REWARDS, strict=True):
        torch.testing.assert_close(row, (rewards - rewards.mean()) / (rewards.std() + 1e-4))
    assert not grpo[1].any()
    plain = advantages(REWARDS, RewardConfig(loss="dr_grpo"))
    torch.testing.assert_close(plain, REWARDS - REWARDS.mean(1, keepdim=True))


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_the_loss_is_that_of_the_formula(loss: Any, kl_weight: float) -> None:
    runtime = make_runtime(RuntimeConfig(device="cpu", dtype="float32", threads=1))
    options = RewardConfig(loss=loss, kl_weight=kl_weight, max_tokens=9)
    values = [1.2, -0.7, 0.0, -0.4]
    policy, exact, reference = model_of(1), model_of(1).double(), model_of(2).double()
    examples = answers(values)
    with torch.no_grad():
        written = [log_p(exact, row) + 0.4 * torch.sin(torch.arange(len(row.ids) - 4)) for row in examples]
        others = [log_p(reference, row) for row in examples]
    batch = pack(examples)._replace(written_log_p=torch.cat(written).float())
    if kl_weight:
        batch = batch._replace(reference_log_p=torch.cat(others).float())
    found = RewardObjective(options)(policy, batch, runtime)
    found.backward()
    expected = torch.zeros((), dtype=torch.float64)
    for row, value, before, other in zip(examples, values, written, others, strict=True):
        now = log_p(exact, row)
        ratio = (now - before).exp()
        tokens = -torch.minimum(ratio * value, ratio.clip(0.8, 1.2) * value)
        tokens = tokens + kl_weight * ((other - now).exp() - (other - now) - 1)
        expected = expected + (tokens.mean() if loss == "grpo" else tokens.sum() / 9)
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    for weight, other_weight in zip(policy.parameters(), exact.parameters(), strict=True):
        assert weight.grad is not None
        assert other_weight.grad is not None
        torch.testing.assert_close(weight.grad.double(), other_weight.grad, rtol=1e-3, atol=1e-4)


Tuned = Callable[..., Result]


@pytest.fixture
def tune(tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> Tuned:
    rows = [{"prompt": f"the miller {n}", "answer": " a"} for n in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.yaml").write_text(
        f"run_dir: reward\nbase: {tiny.run}\ntask: reward\n"
        "data: {train: [prompts.jsonl], validation: [prompts.jsonl]}\n"
        "reward: {group_size: 8, max_tokens: 6, regex: '[aeiou]'}\n"
        "train: {epochs: 6, batch_size: 4, log_every_steps: 1, dropout: 0}\n"
        "optim: {preset: finetune, learning_rate: 0.01}\nruntime: {device: cpu, dtype: float32, threads: 1}\n"
    )
    (tmp_path / "code.py").write_text(
        "open('ran', 'a').write('once\\n')\n\n\ndef score(answer, row):\n    return -len(answer) / len(row['prompt'])\n"
    )
    return lambda *how: run_cli("finetune", "reward.yaml", "-q", *how, cwd=tmp_path)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


def sha256(run: Path) -> str:
    return fsio.sha256(run / "latest/model.safetensors")


@pytest.mark.parametrize(
    "how",
    [
        (),
        ("reward.loss=dr_grpo", "optim.learning_rate=0.03"),
        ("reward.updates=2", "reward.kl_weight=0.01"),
        ("lora.rank=4", "optim.learning_rate=0.05"),
    ],
    ids=["grpo", "dr_grpo", "two updates", "lora"],
)
def test_rewards_rise(tune: Tuned, tmp_path: Path, how: tuple[str, ...]) -> None:
    result = tune(*(part for each in how for part in ("-s", each)))
    assert result.code == 0, result.err
    steps = records(tmp_path / "reward", "train")
    early, late = (sum(step["reward"] for step in part) / 3 for part in (steps[:3], steps[-3:]))
    assert late > early + 0.1
    assert all(0 < step["answer_tokens"] <= 7 for step in steps)
    assert ("kl_nats" in steps[-1]) == any("kl_weight" in each for each in how)
    last = records(tmp_path / "reward", "validation")[-1]
    assert last["kl_nats"] > 0
    assert last["answer_tokens"] <= 6


@pytest.mark.parametrize("step", [3, 4])
def test_a_run_of_several_updates_resumes_to_the_bit_within_the_same_answers(
    tune: Tuned, tmp_path: Path, step: int, run_cli: RunCli
) -> None:
    """Two updates of the same answers: a run that ends after three steps goes on with what was written after two."""
    how = ("-s", "reward.updates=2", "-s", "reward.kl_weight=0.01", "-s", "train.evals_per_epoch=6")
    assert tune(*how, "-s", "train.epochs=2").code == 0
    whole, metrics = sha256(tmp_path / "reward"), records(tmp_path / "reward", "train")
    shutil.rmtree(tmp_path / "reward")
    mark = {"MARK": f"gptcli.train.loop:train_step:{step}:15:1"}
    stopped = run_cli("finetune", "reward.yaml", "-q", *how, "-s", "train.epochs=2", cwd=tmp_path, env=mark)
    assert stopped.code == 143, stopped.err
    assert (tmp_path / "reward/latest/carried.safetensors").is_file()
    result = tune(*how, "-s", "train.epochs=2", "--resume")
    assert result.code == 0, result.err
    assert whole == sha256(tmp_path / "reward")
    assert [record["reward"] for record in metrics] == [
        record["reward"] for record in records(tmp_path / "reward", "train")
    ]


def test_code_is_run_only_where_the_user_says_so(tune: Tuned, tmp_path: Path) -> None:
    how = ("-s", "reward.regex=null", "-s", "reward.function=code.py:score")
    tune(*how).error(2, "finetune", "--allow-code")
    result = tune(*how, "--allow-code")
    assert result.code == 0, result.err
    validations = records(tmp_path / "reward", "validation")
    assert validations[-1]["reward"] > validations[0]["reward"]
    assert (tmp_path / "ran").read_text() == "once\n"
    (tmp_path / "code.py").write_text("def score(answer, row):\n    return 1 / 0\n")
    tune(*how, "--allow-code", "--resume", "-s", "train.epochs=8").error(3, "finetune", "the code of the reward")
    tune(*how, "--allow-code", "--force").error(1, "finetune", "prompts.jsonl", "ZeroDivisionError")
    tune("-s", "reward.regex=null", "-s", "reward.function=code.py:other", "--allow-code", "--force").error(
        2, "finetune", "has no function other"
    )


def test_exact_answers_and_previews(tune: Tuned, tmp_path: Path, run_cli: RunCli) -> None:
    how = ("-s", "reward.regex=null", "-s", "train.epochs=1")
    assert tune(*how).code == 0
    shown = run_cli("preview", "reward.yaml", "--rows", "1", "-q", cwd=tmp_path)
    assert "tokens to answer" in shown.text
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    tune(*how, "--force").error(3, "finetune", "data.answer_field=NAME")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a b c d" * 90, "answer": 3}) + "\n")
    tune(*how, "--force").error(3, "finetune", "no room is left")
    tune("-s", "reward.regex=(").error(2, "finetune", "is no pattern")
    tune("-s", "reward.function=code").error(2, "finetune", "FILE.py:NAME")
