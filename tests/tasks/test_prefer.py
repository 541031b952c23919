"""Learning from pairs of answers: the losses beside the papers' formulas, and the task as users run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Result, RunCli, Tiny
from torch import Tensor

from gptcli.config.finetune import PreferConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig, RuntimeConfig
from gptcli.data.example import Example
from gptcli.data.packing import ExampleBatches
from gptcli.device.runtime import make_runtime
from gptcli.model.gpt import GPT
from gptcli.tasks.prefer import PreferenceObjective, with_reference
from gptcli.train.loop import train_step
from gptcli.train.optimizers import make_optimizers
from gptcli.train.state import TrainState

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 24, "vocab_size": 50}
MODEL = ModelConfig.from_preset("gpt2", **SHAPE, tie_embeddings=False)  # every operation of which knows float64
OPTIM = OptimConfig.from_preset("finetune", learning_rate=3e-3, grad_clip_norm=0.0, weight_decay=0.0)
LOSSES = ("dpo", "ipo", "simpo", "orpo")
STEPS, BATCH = 20, 6


def pairs(count: int) -> list[Example]:
    draw = torch.Generator().manual_seed(1)

    def ids(most: int) -> list[int]:
        length = int(torch.randint(2, most, (), generator=draw))
        return torch.randint(50, (length,), generator=draw).tolist()

    def example(prompt: list[int]) -> Example:
        answer = ids(9)
        return Example("here:1", prompt + answer, [False] * len(prompt) + [True] * len(answer), None, False)

    made = []
    for _ in range(count):
        prompt = ids(10)
        made.append(example(prompt)._replace(rejected=example(prompt)))
    return made


def model_of(seed: int) -> GPT:
    model = GPT(MODEL)
    model.initialize(torch.Generator().manual_seed(seed))
    model.head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model


def log_probability(model: GPT, example: Example) -> tuple[Tensor, int]:
    """Of an example's answer, alone in a batch and in float64, and how many tokens it has."""
    ids = torch.tensor([example.ids])
    logits = F.linear(model.hidden(ids, dtype=torch.float64), model.head.weight)[0, :-1]
    learnt = torch.tensor(example.learnt[1:])
    of_each = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return of_each[learnt].sum(), int(learnt.sum())


def trl_loss(options: PreferConfig, policy: GPT, reference: GPT, example: Example) -> Tensor:
    """The loss of a pair as TRL writes it: DPOTrainer (sigmoid, ipo), CPOTrainer (simpo) and ORPOTrainer."""
    assert example.rejected is not None
    (chosen, chosen_tokens), (rejected, rejected_tokens) = (
        log_probability(policy, part) for part in (example, example.rejected)
    )
    with torch.no_grad():
        of_chosen, of_rejected = (log_probability(reference, part)[0] for part in (example, example.rejected))
    beta, wrong = options.scale, options.label_smoothing
    if options.loss == "dpo":
        logits = (chosen - rejected) - (of_chosen - of_rejected)
        return -F.logsigmoid(beta * logits) * (1 - wrong) - F.logsigmoid(-beta * logits) * wrong
    if options.loss == "ipo":
        logits = (chosen - of_chosen) / chosen_tokens - (rejected - of_rejected) / rejected_tokens
        return (logits - 1 / (2 * beta)) ** 2
    chosen, rejected = chosen / chosen_tokens, rejected / rejected_tokens
    if options.loss == "simpo":
        return -F.logsigmoid(beta * (chosen - rejected - options.simpo_margin / beta))
    log_odds = (chosen - rejected) - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
    return -chosen - beta * F.logsigmoid(log_odds)


@pytest.mark.parametrize(
    "options",
    [*(PreferConfig(loss=loss) for loss in LOSSES), PreferConfig(loss="dpo", beta=0.5, label_smoothing=0.2)],
    ids=lambda options: f"{options.loss}-{options.label_smoothing}",
)
def test_twenty_steps_have_the_losses_of_trls_formulas(options: PreferConfig) -> None:
    runtime = make_runtime(RuntimeConfig(device="cpu", dtype="float32", threads=1))
    model, policy, reference = (model_of(3) for _ in range(3))
    policy.double(), reference.double()
    rows = with_reference(pairs(31), model.eval(), runtime)
    model.train()
    batches = ExampleBatches(rows, batch_size=BATCH, micro_batch_tokens=40, seed=1, by_example=True)
    state = TrainState(model, make_optimizers(model, OPTIM, step_tokens=1, dtype=torch.float32))
    theirs = torch.optim.AdamW(
        policy.parameters(), lr=OPTIM.learning_rate, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.eps, weight_decay=0.0
    )
    by_ids = {tuple(row.ids): row for row in rows}
    for number in range(STEPS):
        step = batches(number)
        assert step.targets == BATCH
        chosen = [
            tuple(part.tolist())
            for batch in step.micro_batches
            for part in torch.split(batch.inputs[0], list(batch.lengths or ()))[::2]
        ]
        nats, _ = train_step(state, step, 0.0, runtime, seed=1, objective=PreferenceObjective(options))
        loss = torch.stack([trl_loss(options, policy, reference, by_ids[ids]) for ids in chosen]).mean()
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        assert nats / BATCH == pytest.approx(loss.item(), abs=1e-4)


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def text_pairs(count: int) -> list[dict[str, object]]:
    return [
        {"prompt": f"the miller {n}", "chosen": " lost a map", "rejected": " hid by the river all day"}
        for n in range(count)
    ]


Tuned = Callable[..., Result]


@pytest.fixture
def tune(tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> Tuned:
    write_rows(tmp_path / "pairs.jsonl", text_pairs(40))
    (tmp_path / "prefer.yaml").write_text(
        f"run_dir: prefer\nbase: {tiny.run}\ntask: prefer\ndata: {{train: [pairs.jsonl], validation_fraction: 0.2}}\n"
        "train: {epochs: 4, batch_size: 8}\noptim: {preset: finetune, learning_rate: 0.003}\n"
        "runtime: {device: cpu, threads: 1}\n"
    )
    return lambda *how: run_cli("finetune", "prefer.yaml", "-q", *how, cwd=tmp_path)


@pytest.mark.parametrize(
    "how", [*((f"prefer.loss={loss}",) for loss in LOSSES), ("lora.rank=4", "optim.learning_rate=0.02")]
)
def test_the_better_answer_becomes_the_likelier_one(tune: Tuned, tmp_path: Path, how: tuple[str, ...]) -> None:
    result = tune("--json", *(part for each in how for part in ("-s", each)))
    assert result.code == 0, result.err
    metrics = [json.loads(line) for line in (tmp_path / "prefer/metrics.jsonl").read_text().splitlines()]
    found = [record for record in metrics if record["kind"] == "validation"]
    assert found[-1]["accuracy"] == 1.0
    assert found[-1]["loss_nats"] < found[0]["loss_nats"]
    assert found[-1]["margin"] > found[0]["margin"]
    assert found[-1]["kl_nats"] > 0
    assert 1 <= found[-1]["answer_tokens"] <= 128


def test_without_a_step_nothing_lies_between_model_and_base(tune: Tuned, tmp_path: Path) -> None:
    """A rate of next to nothing: DPO's loss is ln 2, and no token has another probability."""
    result = tune("-s", "optim.learning_rate=1e-12", "-s", "optim.weight_decay=0")
    assert result.code == 0, result.err
    *_, last = (
        json.loads(line) for line in (tmp_path / "prefer/metrics.jsonl").read_text().splitlines() if "kl" in line
    )
    assert last["loss_nats"] == pytest.approx(0.693147, abs=1e-5)
    assert last["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert last["margin"] == pytest.approx(0, abs=1e-4)


def test_every_form_of_a_conversation_is_the_same_pair(
    tune: Tuned, tmp_path: Path, run_cli: RunCli, tiny: Tiny
) -> None:
    """Text, answers as messages, and answers that begin with the prompt; only what they do not share is learnt."""
    prompt = [{"role": "user", "content": "where"}]
    yes, no = ({"role": "assistant", "content": text} for text in ("by the river", "a map"))
    (tmp_path / "chat.yaml").write_text(
        f"run_dir: chat\nbase: {tiny.run}\ntask: chat\ndata: {{train: [chats.jsonl], validation_fraction: 0}}\n"
        "train: {epochs: 1}\nruntime: {device: cpu, threads: 1}\n"
    )
    write_rows(tmp_path / "chats.jsonl", [{"messages": [*prompt, yes]}])
    result = run_cli("finetune", "chat.yaml", "-q", cwd=tmp_path)
    assert result.code == 0, result.err
    rows: list[dict[str, object]] = [
        {"prompt": "where", "chosen": yes["content"], "rejected": no["content"]},
        {"prompt": prompt, "chosen": [yes], "rejected": [no]},
        {"prompt": "where", "chosen": [*prompt, yes], "rejected": [*prompt, no]},
        {"chosen": [*prompt, yes], "rejected": [*prompt, no]},
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    how = ("-s", "base=chat", "-s", "data.validation_fraction=0")
    shown = run_cli("preview", "prefer.yaml", "--jsonl", *how, cwd=tmp_path)
    rows_shown = [json.loads(line) for line in shown.text.splitlines()]
    assert len({json.dumps((row["ids"], row["learnt"])) for row in rows_shown[::2]}) == 1
    assert len({json.dumps((row["ids"], row["learnt"])) for row in rows_shown[1::2]}) == 1
    assert rows_shown[1]["place"].endswith(": rejected")
    result = tune(*how, "-s", "train.sample_prompt=where")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "prefer/latest/config.json").read_text())["conversation"]["end"] == "<|end|>"


def test_pairs_that_teach_nothing_are_refused(tune: Tuned, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": " b", "rejected": " b"}])
    tune().error(3, "finetune", "pairs.jsonl:1", "both answers are the same")
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": " b", "rejected": ""}])
    tune().error(3, "finetune", "rejected is empty")
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "better": " b", "rejected": " c"}])
    tune().error(3, "finetune", "data.chosen_field=NAME")
    write_rows(
        tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": " c"}]
    )
    tune().error(3, "finetune", "no form of conversation", "task: chat first")
    tune("-s", "prefer.loss=ipo", "-s", "prefer.label_smoothing=0.1").error(2, "finetune", "label_smoothing")
