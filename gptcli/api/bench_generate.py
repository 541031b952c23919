"""Measure how fast a checkpoint reads prompts and writes text here, one text at a time and several."""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.base.report import Report
from gptcli.base.units import amount, count, duration
from gptcli.config.generate import GenerateOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.machine import read_bytes_per_second
from gptcli.device.runtime import Runtime, memory_bytes
from gptcli.generate.engine import Engine, Request
from gptcli.generate.kv_cache import cache_bytes
from gptcli.generate.packed_weights import Quantize, pack
from gptcli.model.gpt import GPT
from gptcli.model.layers import Linear

PROMPT_TOKENS, NEW_TOKENS = 64, 64
ROUNDS = 3


@dataclass(frozen=True)
class BatchSpeed:
    """Medians over several rounds of writing `batch` texts at a time."""

    batch: int
    first_token_seconds: float  # of the text that has it first
    prefill_tokens_per_second: float
    decode_tokens_per_second: float  # of all texts together
    mbu: float  # bytes that a step must read, over what memory gives in its time


@dataclass(frozen=True)
class GenerationSpeed:
    """The result of `gptcli bench generate`."""

    checkpoint: str
    dtype: str
    quantize: str | None
    threads: int
    prompt_tokens: int
    new_tokens: int
    weight_bytes: int  # of the matrices, which every step reads
    read_bytes_per_second: float
    memory_bytes: int
    batches: Sequence[BatchSpeed]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        return [
            ("checkpoint", self.checkpoint),
            ("weights", f"{amount(self.weight_bytes, 'B')} in {self.quantize or self.dtype}"),
            *self.batch_lines(),
            ("reading memory", amount(self.read_bytes_per_second, "B/s")),
            ("peak memory", amount(self.memory_bytes, "B")),
        ]

    def batch_lines(self) -> list[tuple[str, str]]:
        """Return a line for each batch."""
        return [
            (
                f"texts at a time: {speed.batch}",
                f"{speed.decode_tokens_per_second:,.0f} tokens/s, {speed.mbu:.0%} of the bandwidth (MBU); "
                f"prompts {speed.prefill_tokens_per_second:,.0f} tokens/s, "
                f"first token after {duration(speed.first_token_seconds)}",
            )
            for speed in self.batches
        ]


def bench_generate(
    run: str | Path,
    *,
    batches: Sequence[int],
    quantize: Quantize | None = None,
    report: Report,
    **how: Unpack[DeviceOptions],
) -> GenerationSpeed:
    """Return the speed of a run or checkpoint."""
    opened = open_model(run, **how)
    return writing_speed(
        opened.model,
        opened.tokenizer,
        opened.runtime,
        name=str(opened.directory),
        batches=batches,
        quantize=quantize,
        report=report,
    )


def writing_speed(
    model: GPT,
    tokenizer: Tokenizer,
    runtime: Runtime,
    *,
    name: str,
    batches: Sequence[int],
    quantize: Quantize | None = None,
    report: Report,
) -> GenerationSpeed:
    """Pack the model for writing and time texts of one length after prompts of made-up tokens."""
    dtype = str(runtime.dtype).removeprefix("torch.")
    size = 1 if quantize else runtime.dtype.itemsize
    weight_bytes = size * sum(m.weight.numel() for m in model.modules() if isinstance(m, Linear))
    runtime = pack(model, runtime, quantize=quantize)
    bandwidth = read_bytes_per_second(runtime.device)
    prompt, new = lengths(model)
    speeds = []
    for batch in batches:
        report.message(f"measuring {count(batch, 'text')} at a time")
        read = weight_bytes + cache_bytes(
            model.config, batch, prompt + new // 2, activation_size=runtime.cache_dtype.itemsize
        )
        rounds = [  # a new engine for each, which holds no beginning of an earlier round
            _round(Engine(model, tokenizer, runtime, slots=batch), prompt, new, seed) for seed in range(ROUNDS)
        ]
        first, prefill, decode = (statistics.median(times) for times in zip(*rounds, strict=True))
        speeds.append(
            BatchSpeed(
                batch,
                first,
                batch * prompt / prefill,
                batch * (new - 1) / decode,
                read * (new - 1) / decode / bandwidth,
            )
        )
    return GenerationSpeed(
        checkpoint=name,
        dtype=dtype,
        quantize=quantize,
        threads=runtime.threads,
        prompt_tokens=prompt,
        new_tokens=new,
        weight_bytes=weight_bytes,
        read_bytes_per_second=bandwidth,
        memory_bytes=memory_bytes(runtime),
        batches=speeds,
    )


def lengths(model: GPT) -> tuple[int, int]:
    """Return tokens of a prompt, and new ones, as the context has room for."""
    prompt = min(PROMPT_TOKENS, model.config.context_length // 2)
    return prompt, min(NEW_TOKENS, model.config.context_length - prompt + 1)  # the last is never read


def _round(engine: Engine, prompt_tokens: int, new_tokens: int, seed: int) -> tuple[float, float, float]:
    """Return seconds to the first token, to the first token of every text, and from there to the last of all."""
    chance = random.Random(seed)
    specials = set(engine.tokenizer.specials.values())
    ordinary = [index for index in range(engine.tokenizer.vocab_size) if index not in specials]
    options = GenerateOptions(max_tokens=new_tokens, top_k=50, stop_at_eos=False, seed=seed)
    count = prompt_tokens - len(engine.bos_ids)
    requests = [Request(chance.choices(ordinary, k=count), options, sample) for sample in range(engine.count)]
    start = last = time.perf_counter()
    first: list[float] = []
    for completion in engine.steps(requests, capacity=prompt_tokens + new_tokens):
        completion.check()
        last = time.perf_counter()
        if len(completion.ids) == 1:
            first.append(last)
    return first[0] - start, first[-1] - start, last - first[-1]
