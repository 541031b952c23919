"""From nothing to a model that writes: every step of the work on text that Python carries, within a time budget."""

from __future__ import annotations

import dataclasses
import json
import lzma
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gptcli import configfile, fsio
from gptcli.config import DataConfig, GenerateOptions, ModelConfig, PretrainConfig, TokenizerConfig, TrainConfig
from gptcli.data.batches import Batch
from gptcli.data.python_english import documents
from gptcli.errors import RefusedError
from gptcli.report import Report
from gptcli.runs.evaluate import evaluate
from gptcli.runs.generate import Writer
from gptcli.runs.pretrain import new_state, pretrain
from gptcli.runs.train_tokenizer import train_tokenizer
from gptcli.runtime import keep_freed_memory, make_runtime
from gptcli.train import train_step

HELD_OUT_EVERY = 20  # of the documents, one is held out
PROBE_SECONDS = 2.0
RESERVE_SECONDS = 9.0  # for evaluating, writing a sample and saving, with room for a slower moment
OVERHEAD = 1.04  # validation and samples on the way, relative to the steps themselves
PROMPT = "The import statement"


@dataclass(frozen=True)
class Quickstart:
    """How it ended: the sample, and the facts worth showing."""

    exit_code: int
    sample: str = ""
    summary: list[tuple[str, str]] = field(default_factory=list)


def sizes(training_seconds: float) -> tuple[ModelConfig, int, int]:
    """Model, vocabulary and batch for a training time: the best measured on 2 Zen 4 cores for 20 s, 2 min and 9 min."""
    if training_seconds < 45:
        return ModelConfig(num_layers=4, hidden_size=128, num_heads=4, context_length=128), 2048, 8
    if training_seconds < 300:
        return ModelConfig(num_layers=4, hidden_size=192, num_heads=6, context_length=256), 2048, 8
    return ModelConfig(num_layers=6, hidden_size=256, num_heads=8, context_length=256), 4096, 8


def quickstart(budget_seconds: float, output: Path, *, force: bool, report: Report) -> Quickstart:
    """Do it all; everything lies below `output`."""
    started = time.monotonic()
    if (output / "run").exists() and not force:
        raise RefusedError(f"{output}: holds a quickstart; pass --force to begin again or -o for another directory")
    output.mkdir(parents=True, exist_ok=True)
    report.message("collecting English from this Python's own documentation")
    train_file, held_out_file = collect(output)
    tokenizer_file, run_file = output / "tokenizer.json", output / "run.yaml"
    left = budget_seconds - RESERVE_SECONDS - (time.monotonic() - started)
    model, vocab_size, batch_size = sizes(left)

    _show(report, f"train-tokenizer {train_file} -o {tokenizer_file} --vocab-size {vocab_size}")
    facts = train_tokenizer([str(train_file)], tokenizer_file, vocab_size=vocab_size, force=True, report=report)
    report.message(f"{facts.vocab_size} tokens, {facts.bytes_per_token:.2f} bytes per token")

    config = PretrainConfig(
        run_dir=str(output / "run"),
        data=DataConfig(train=(str(train_file),), validation=(str(held_out_file),), cache_dir=str(output / "cache")),
        tokenizer=TokenizerConfig(path=str(tokenizer_file)),
        model=model,
        train=TrainConfig(batch_size=batch_size, eval_tokens=20_000, sample_prompt=PROMPT, sample_tokens=40),
    )
    left = budget_seconds - RESERVE_SECONDS - (time.monotonic() - started)
    config = with_steps(config, vocab_size, max(left, 1.0))
    fsio.write_file(run_file, configfile.dump(config))
    _show(report, f"pretrain {run_file}")
    result = pretrain(config, force=force, report=report)
    if not result.finished:
        return Quickstart(result.exit_code)

    _show(report, f"evaluate {config.run_dir} {held_out_file}")
    evaluation = evaluate(config.run_dir, [str(held_out_file)], report=report)
    held_out = held_out_file.read_bytes()
    compressed = 8 * len(lzma.compress(held_out, preset=9)) / len(held_out)

    _show(report, f'generate {config.run_dir} "{PROMPT}" --max-tokens 120 --top-k 50 --seed 1')
    options = GenerateOptions(max_tokens=120, top_k=50, seed=1)
    (sample,) = Writer(config.run_dir).samples(PROMPT, options)

    bits = evaluation.score.bits_per_byte
    verdict = "better" if bits < compressed else "not better; give it more time with --budget 10m"
    summary = [
        ("held-out bits per byte", f"{bits:.3f}"),
        ("xz -9 on the same bytes", f"{compressed:.3f} (the model is {verdict})"),
        ("perplexity", f"{evaluation.score.perplexity:.1f}"),
        ("time", f"{time.monotonic() - started:.0f} s of {budget_seconds:.0f} s"),
        ("model", f"{config.run_dir}/best"),
        ("run file", str(run_file)),
        ("metrics", f"{config.run_dir}/metrics.jsonl"),
        ("text", f"{train_file}, {held_out_file}"),
    ]
    report.message(f'\nnext: echo "A list is" | gptcli generate {config.run_dir} --max-tokens 60')
    return Quickstart(0, PROMPT + sample.text, summary)


def _show(report: Report, command: str) -> None:
    report.message(f"\n$ gptcli {command}")


def collect(output: Path) -> tuple[Path, Path]:
    """Write train.jsonl, a document a line, and heldout.txt, every twentieth document; returns their paths."""
    train_file, held_out_file = output / "train.jsonl", output / "heldout.txt"
    with fsio.replacing(train_file) as train, fsio.replacing(held_out_file) as held_out:
        for number, text in enumerate(documents()):
            if number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1:
                held_out.write(text.encode())
            else:
                train.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
    return train_file, held_out_file


def with_steps(config: PretrainConfig, vocab_size: int, seconds: float) -> PretrainConfig:
    """The run with as many steps as this machine does in `seconds`, and milestones to match."""
    steps = max(20, int(seconds / (step_seconds(config, vocab_size) * OVERHEAD)))
    often = max(1, -(-steps // 4))
    train = dataclasses.replace(
        config.train, steps=steps, eval_every_steps=often, save_every_steps=often, sample_every_steps=often
    )
    return dataclasses.replace(config, train=train)


def step_seconds(config: PretrainConfig, vocab_size: int) -> float:
    """Median time of an optimizer step of this run on this machine, from PROBE_SECONDS of real steps."""
    runtime = make_runtime(config.runtime)
    if runtime.device.type == "cpu":
        keep_freed_memory()
    state = new_state(dataclasses.replace(config.model, vocab_size=vocab_size), config, runtime)
    shape = (config.train.batch_size, config.model.context_length)
    ids = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))
    times: list[float] = []
    end = time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < end or len(times) < 4:
        start = time.perf_counter()
        train_step(state, [Batch(ids, ids, "probe")], 0.0, runtime, seed=1)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
