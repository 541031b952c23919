"""Make a model from the text that Python carries, by every step of the work, within a time budget."""

from __future__ import annotations

import json
import lzma
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptcli.api.evaluate import evaluate
from gptcli.api.generate import Writer
from gptcli.api.pretrain import pretrain
from gptcli.api.train_tokenizer import train_tokenizer
from gptcli.base import fsio
from gptcli.base.errors import RefusedError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.config import yaml_file
from gptcli.config.data import DataConfig
from gptcli.config.generate import GenerateOptions
from gptcli.config.train import PretrainConfig
from gptcli.data.batches import derived_seed
from gptcli.data.overlap import Overlap, find_overlap, groups
from gptcli.data.python_english import documents
from gptcli.data.text import Piece
from gptcli.device.runtime import keep_freed_memory, make_runtime
from gptcli.train.autoconfig import AutoConfig, training_flops_per_second

HELD_OUT, LARGEST_GROUP = 0.05, 0.02  # shares of the text: held out, and of one group in that
LONGEST_RESERVE_SECONDS, RESERVE_SHARE = 9.0, 0.04  # for evaluating and writing a sample after the training
PROMPT = "The import statement"
BEFORE_THE_RUN = {"train.jsonl", "heldout.txt", "tokenizer.json", "run.yaml"}  # what a killed quickstart leaves


@dataclass(frozen=True)
class Quickstart:
    """The result of `gptcli quickstart`: the sample, and the facts worth showing."""

    exit_code: int
    sample: str = ""
    summary: list[tuple[str, str]] = field(default_factory=list)


def quickstart(budget_seconds: float, output: Path, *, force: bool, report: Report) -> Quickstart:
    """Do it all; everything lies below `output`."""
    started = time.monotonic()
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if any(not name.startswith(".tmp-") for name in there - BEFORE_THE_RUN) and not force:
        raise RefusedError(
            f"{escape(str(output))}: holds files; pass --force to replace them or -o for another directory"
        )
    output.mkdir(parents=True, exist_ok=True)
    report.message("collecting English from this Python's own documentation")
    train_file, held_out_file, overlap = collect(output)
    report.message(
        f"held out {overlap.held_out_words:,} words; {overlap.shared_words:,} of them in passages of "
        f"{overlap.passage_words} words or more of the training text"
    )
    tokenizer_file, run_file = output / "tokenizer.json", output / "run.yaml"
    ends_at = started + budget_seconds - min(LONGEST_RESERVE_SECONDS, RESERVE_SHARE * budget_seconds + 3.0)
    config = PretrainConfig(run_dir=str(output / "run"), data=DataConfig(train=(str(train_file),)))
    keep_freed_memory()
    speed = training_flops_per_second(config, make_runtime(config.runtime))
    config = AutoConfig({}, report).choose_model_size(config, speed, ends_at - time.monotonic())

    vocab_size = config.tokenizer.vocab_size
    _show(report, f"train-tokenizer {train_file} -o {tokenizer_file} --vocab-size {vocab_size}")
    facts = train_tokenizer([str(train_file)], tokenizer_file, vocab_size=vocab_size, force=True, report=report)
    report.message(f"{facts.vocab_size} tokens, {facts.bytes_per_token:.2f} bytes per token")

    seconds = max(1.0, ends_at - time.monotonic())
    fsio.write_file(run_file, run_file_text(config, output, train_file, held_out_file, tokenizer_file, seconds))
    _show(report, f"pretrain {run_file}")
    loaded = yaml_file.load(PretrainConfig, run_file)
    result = pretrain(loaded.value, force=force, report=report, origins=loaded.origins)
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


def run_file_text(
    config: PretrainConfig, output: Path, train: Path, held_out: Path, tokenizer: Path, seconds: float
) -> str:
    """Return the run file: what was chosen, and the rest left open."""
    model = config.model
    return f"""\
run_dir: {json.dumps(str(output / "run"))}
data:
  train: [{json.dumps(str(train))}]
  validation: [{json.dumps(str(held_out))}]
  cache_dir: {json.dumps(str(output / "cache"))}
tokenizer:
  path: {json.dumps(str(tokenizer))}
model:
  num_layers: {model.num_layers}
  hidden_size: {model.hidden_size}
  num_heads: {model.num_heads}
  context_length: {model.context_length}
train:
  budget: {seconds:.1f}s
  batch_size: {config.train.batch_size}
  eval_tokens: 20000
  sample_prompt: {PROMPT}
  sample_tokens: 40
"""


def _show(report: Report, command: str) -> None:
    report.message(f"\n$ gptcli {command}")


def collect(output: Path) -> tuple[Path, Path, Overlap]:
    """Write train.jsonl, a document a line, and heldout.txt; return their paths, and what they have in common.

    Documents that share a passage of 50 words stay together, so that no such passage is on both sides.
    """
    train_file, held_out_file = output / "train.jsonl", output / "heldout.txt"
    texts = list(dict.fromkeys(documents()))
    held_out = _drawn(texts)
    with fsio.replacing(train_file) as train, fsio.replacing(held_out_file) as kept:
        for number, text in enumerate(texts):
            if number in held_out:
                kept.write(text.encode())
            else:
                train.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
    kept_pieces = [Piece(texts[number], True, 0) for number in sorted(held_out)]
    others = [Piece(text, True, 0) for number, text in enumerate(texts) if number not in held_out]
    return train_file, held_out_file, find_overlap(kept_pieces, others)


def _drawn(texts: Sequence[str]) -> set[int]:
    """Choose the texts to hold out: groups that share passages, drawn by a hash until they have their share."""
    characters = sum(map(len, texts))
    drawn: set[int] = set()
    for members in sorted(groups(texts), key=lambda members: derived_seed("validation", members[0])):
        size = sum(len(texts[number]) for number in members)
        if size <= characters * LARGEST_GROUP and sum(len(texts[number]) for number in drawn) < characters * HELD_OUT:
            drawn.update(members)
    return drawn
