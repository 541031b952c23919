"""Learning from a teacher: the loss beside float64, what is kept of a teacher, and runs as users make them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL, Result, RunCli, Tiny, english
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptcli.base import fsio
from gptcli.base.report import Report
from gptcli.config.data import SourceConfig
from gptcli.config.distill import DistillConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import RuntimeConfig
from gptcli.data.batches import IGNORE, Batch, TokenRows
from gptcli.data.mixture import MixedBatches
from gptcli.data.shards import TokenArray
from gptcli.data.taught import PART_TOKENS, keep_taught, record_dtype
from gptcli.device.runtime import make_runtime
from gptcli.model.gpt import GPT
from gptcli.tasks.distill import DistillObjective, Teacher
from gptcli.tasks.task import WholeReference

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 24, "vocab_size": 50}


def model_of(seed: int, **shape: object) -> GPT:
    model = GPT(ModelConfig.from_preset("modern", **(SHAPE | shape)))
    model.initialize(torch.Generator().manual_seed(seed))
    model.head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model


def reference_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, k: int, alpha: float, temperature: float
) -> Tensor:
    """The formula in float64: cross-entropy, and KL over the teacher's k likeliest tokens and all others together."""
    nats = torch.nn.functional.cross_entropy(student, targets, reduction="sum", ignore_index=IGNORE)
    p, q = (torch.softmax(logits / temperature, -1) for logits in (teacher, student))
    best = p.topk(k).indices
    p_top, q_top = p.gather(1, best), q.gather(1, best)
    p_rest = torch.ones_like(p).scatter_(1, best, 0.0)
    p_all = torch.cat((p_top, (p * p_rest).sum(1, keepdim=True)), 1)
    q_all = torch.cat((q_top, (q * p_rest).sum(1, keepdim=True)), 1)
    kl = torch.where(p_all > 0, p_all * (p_all / q_all.clamp_min(1e-300)).log(), 0.0).sum(1)
    return (1 - alpha) * nats + alpha * temperature**2 * kl[targets != IGNORE].sum()


@settings(max_examples=15, deadline=None)
@given(
    k=st.sampled_from((1, 4, 49, 50)),
    alpha=st.sampled_from((0.3, 1.0)),
    temperature=st.sampled_from((1.0, 2.5)),
    softcap=st.sampled_from((0.0, 15.0)),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradients_are_those_of_the_formula(
    k: int, alpha: float, temperature: float, softcap: float, seed: int
) -> None:
    runtime = make_runtime(RuntimeConfig(device="cpu", dtype="float32", threads=1))
    student, teaching = model_of(seed, logit_softcap=softcap), model_of(seed + 1).eval()
    draw = torch.Generator().manual_seed(seed)
    inputs, targets = (torch.randint(50, (3, 24), generator=draw) for _ in range(2))
    targets[1, 3:9] = IGNORE
    options = DistillConfig(teacher="t", alpha=alpha, temperature=temperature, top_k=k)
    teacher = Teacher(options, [], teaching.config, 50, 0, lambda: teaching)
    loss = DistillObjective(teacher, WholeReference(teaching))(student, Batch(inputs, targets, "here"), runtime)
    loss.backward()

    hidden = student.hidden(inputs, dtype=torch.float32).detach().flatten(0, 1).double().requires_grad_()
    weight = student.head.weight.detach().double().requires_grad_()
    logits = hidden @ weight.T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    with torch.no_grad():
        others = (teaching.hidden(inputs, dtype=torch.float32).double() @ teaching.head.weight.T.double()).flatten(0, 1)
    expected = reference_loss(logits, others, targets.flatten(), k, alpha, temperature)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert student.head.weight.grad is not None
    torch.testing.assert_close(student.head.weight.grad.double(), weight.grad, rtol=1e-3, atol=2e-4)


def test_a_cache_goes_on_where_it_was_stopped_and_mends_damage(tmp_path: Path) -> None:
    dtype = record_dtype(300, 4)
    asked: list[int] = []

    def teach(start: int, end: int, *, stops_at: int = 1 << 40) -> np.ndarray:
        if start >= stops_at:
            raise KeyboardInterrupt
        asked.append(start // PART_TOKENS)
        records = np.zeros(end - start, dtype)
        records["ids"] = (np.arange(start, end)[:, None] + np.arange(4)) % 300
        records["log_p"] = -np.arange(4)
        return records

    tokens = 3 * PART_TOKENS + 100
    with pytest.raises(KeyboardInterrupt):
        keep_taught(tmp_path / "kept", tokens, dtype, lambda a, b: teach(a, b, stops_at=2 * PART_TOKENS), Report())
    kept = keep_taught(tmp_path / "kept", tokens, dtype, teach, Report())
    assert asked == [0, 1, 2, 3]
    said = kept.rows(np.array([0, 3 * PART_TOKENS - 5]), 10)
    assert said.ids[1, :, 0].tolist() == [number % 300 for number in range(3 * PART_TOKENS - 5, 3 * PART_TOKENS + 5)]
    assert said.log_p[0, 0].tolist() == [0, -1, -2, -3]
    del kept, said
    part = tmp_path / "kept/part-00001.bin"
    part.write_bytes(b"\xff" + part.read_bytes()[1:])
    keep_taught(tmp_path / "kept", tokens, dtype, teach, Report())
    assert asked == [0, 1, 2, 3, 1]


def test_rows_of_a_mixture_come_with_what_is_said_of_their_own_tokens(
    tmp_path: Path, tiny: Tiny, run_cli: RunCli
) -> None:
    """Of a teacher that is always right: the first of its tokens is the one that comes."""
    sources, parts = [], []
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(english(150, seed=number))
        result = run_cli("prepare", f"{number}.txt", "-t", tiny.tokenizer, "-o", f"{number}", "-q", cwd=tmp_path)
        assert result.code == 0, result.err
        tokens, dtype = TokenArray(tmp_path / f"{number}", "train"), record_dtype(300, 2)

        def teach(start: int, end: int, tokens: TokenArray = tokens, dtype: np.dtype[Any] = dtype) -> np.ndarray:
            records = np.zeros(end - start, dtype)
            records["ids"][:, 0] = tokens.read(start, end - start)
            return records

        kept = keep_taught(tmp_path / f"kept-{number}", len(tokens), dtype, teach, Report())
        sources.append(TokenRows(tokens, context_length=16, seed=number, taught=kept))
        parts.append(SourceConfig(path=f"{number}", weight=1.0 + number))
    shape: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 8, "first_token": 0, "seed": 1}
    for step in range(9):
        for batch in MixedBatches(sources, parts, temperature=1.0, **shape)(step).micro_batches:
            assert batch.taught is not None
            assert torch.equal(batch.taught.ids[..., 0], batch.targets)


Taught_ = Callable[..., Result]


@pytest.fixture
def learn(tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> Taught_:
    (tmp_path / "run.yaml").write_text(
        f"run_dir: student\ndata: {{train: [{tiny.corpus}], cache_dir: cache}}\nmodel: {TINY_MODEL}\n"
        f"distill: {{teacher: {tiny.run}, top_k: 8}}\n"
        "train: {steps: 12, batch_size: 4, micro_batch_size: 1, eval_every_steps: 6, save_every_steps: 6, "
        "sample_every_steps: 0, log_every_steps: 1}\nruntime: {device: cpu, dtype: float32, threads: 2}\n"
    )
    return lambda *how, command="pretrain": run_cli(command, "run.yaml", *how, cwd=tmp_path)


def sha256(run: Path) -> str:
    return fsio.sha256(run / "latest/model.safetensors")


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0], ids=["cached", "along"])
def test_a_student_learns_the_teachers_tokens_and_resumes_exactly(
    learn: Taught_, tmp_path: Path, tiny: Tiny, cache_bytes: int
) -> None:
    how = ("-s", f"distill.cache_bytes={cache_bytes}")
    result = learn(*how)
    assert result.code == 0, result.err
    assert ("was computed now" in result.err) == bool(cache_bytes)
    assert list(tmp_path.glob("cache/taught/*/index.json")) != [] if cache_bytes else True
    losses = [
        record["loss_nats"]
        for line in (tmp_path / "student/metrics.jsonl").read_text().splitlines()
        if (record := json.loads(line))["kind"] == "train"
    ]
    assert losses[-1] < losses[0]
    assert (tmp_path / "student/latest/tokenizer.json").read_bytes() == (
        tiny.run / "latest/tokenizer.json"
    ).read_bytes()
    whole = sha256(tmp_path / "student")
    shutil.rmtree(tmp_path / "student/checkpoints/step-000012")
    result = learn(*how, "--resume")
    assert result.code == 0, result.err
    assert "resumed at step 6" in result.err
    assert ("was computed before" in result.err) == bool(cache_bytes)
    assert sha256(tmp_path / "student") == whole


def test_lineage_and_resuming_know_the_teacher(learn: Taught_, tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> None:
    assert learn().code == 0
    said = run_cli("lineage", "student", cwd=tmp_path).text
    assert "teacher: recipe" in said
    (tmp_path / "tune.yaml").write_text(
        f"run_dir: other\nbase: {tiny.run}\ntask: text\ndata: {{train: [{tiny.corpus}]}}\n"
        "train: {epochs: 0.1}\nruntime: {device: cpu, dtype: float32, threads: 1}\n"
    )
    result = run_cli("finetune", "tune.yaml", cwd=tmp_path)
    assert result.code == 0, result.err
    learn("--resume", "-q", "-s", "distill.teacher=other").error(3, "pretrain", "the teacher has changed")
    shutil.copytree(tiny.run, tmp_path / "moved", symlinks=True)
    assert learn("--resume", "-s", "distill.teacher=moved").code == 0


def test_a_teacher_that_does_not_fit_is_refused(learn: Taught_, tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("train-tokenizer", tiny.corpus, "-o", "other.json", "--vocab-size", "280", cwd=tmp_path)
    assert result.code == 0, result.err
    learn("-q", "-s", "tokenizer.path=other.json").error(3, "pretrain", "another tokenizer", "gptcli generate")
    learn("-q", "-s", "distill.cache_bytes=0", "-s", "model.context_length=64").error(
        2, "pretrain", "at most 32 tokens"
    )
    learn("-s", "distill.teacher=nowhere").error(2, "pretrain", "no such directory")
    learn("-s", "distill.alpha=0").error(2, "pretrain", "distill.alpha")


def test_fine_tuning_learns_from_a_teacher(tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": f"the miller {n}", "completion": " lost a map"}) + "\n" for n in range(20))
    )
    (tmp_path / "tune.yaml").write_text(
        f"run_dir: teacher\nbase: {tiny.run}\ntask: instruct\ndata: {{train: [rows.jsonl]}}\n"
        "train: {epochs: 2}\nruntime: {device: cpu, dtype: float32, threads: 1}\n"
    )
    assert run_cli("finetune", "tune.yaml", cwd=tmp_path).code == 0
    how = ("-s", "run_dir=student", "-s", "distill.teacher=teacher")
    result = run_cli("finetune", "tune.yaml", *how, cwd=tmp_path)
    assert result.code == 0, result.err
    assert "taught by teacher" in result.err
