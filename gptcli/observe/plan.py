"""A run file -> what the run takes: parameters, tokens, FLOPs, memory, time, energy and price. Nothing is trained."""

from __future__ import annotations

import dataclasses
import math
import statistics

import torch

from gptcli.base.errors import ConfigError, GptcliError
from gptcli.base.units import amount, count
from gptcli.config.train import PretrainConfig, RuntimeConfig
from gptcli.data.size import TokenCount, find_vocabulary, training_tokens
from gptcli.data.taught import record_dtype
from gptcli.device import accelerators, machine
from gptcli.device.runtime import make_runtime
from gptcli.generate.kv_cache import cache_bytes
from gptcli.model.gpt import GPT
from gptcli.observe.memory import Memory, Workload, training_memory
from gptcli.observe.plan_report import USABLE_MEMORY, Plan, Rates, Target, TeacherPlan
from gptcli.observe.plan_sharded import memory_of, plan_processes
from gptcli.observe.step_times import step_times
from gptcli.tasks.distill import WINDOWS_A_TOKEN, wanted_tokenizer
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import read_config
from gptcli.train.micro_batches import micro_batch_rows
from gptcli.train.shard_choice import choose, whole_bytes
from gptcli.train.step_paired import can_pair


def make_plan(
    config: PretrainConfig,
    target: Target,
    rates: Rates,
    *,
    measured_step_seconds: float | None,
    processes: int = 1,
    bytes_per_second: float | None = None,
) -> Plan:
    """Return the plan of a run on `target`, or on so many of them, which exchange `bytes_per_second` each."""
    config = dataclasses.replace(config, tokenizer=wanted_tokenizer(config))
    tokenizer, vocab_size = find_vocabulary(config)
    model_config = dataclasses.replace(config.model, vocab_size=vocab_size)
    with torch.device("meta"):
        model = GPT(model_config)
    T, train = model_config.context_length, config.train
    per_token = model.train_flops_per_token(T)
    attention = per_token - model.train_flops_per_token(0)
    tokens = train.steps * train.batch_size * T
    divisors = (size for size in range(1, train.batch_size + 1) if train.batch_size % size == 0)
    sizes = [size for size in divisors if train.batch_size // size >= processes] or [1]

    data = training_tokens(config.data, tokenizer, vocab_size)
    teacher = plan_teacher(config, data, tokens)

    def memory(micro_batch: int) -> Memory:
        work = _workload(config, model, target, micro_batch, processes)
        found = training_memory(work) if processes == 1 else memory_of(work, processes, exchange, sharded=sharded)
        if teacher is None or teacher.kept_bytes is not None:
            return found
        return Memory(found.moment, found.parts | {"teacher": teacher.parameters * target.activation_size})

    rows, exchange = micro_batch_rows(train, T, on_cpu=target.on_cpu, processes=processes), config.parallel.exchange
    sharded = processes > 1 and choose(config.parallel, whole_bytes(model, config.optim), target.memory_bytes)
    room = USABLE_MEMORY * target.memory_bytes if target.memory_bytes else math.inf
    split = (_workload(config, model, target, rows, processes), processes, exchange, bytes_per_second, room)
    shared = plan_processes(*split, sharded=sharded) if processes > 1 else None
    return Plan(
        shared=shared,
        target=target,
        rates=rates,
        parameters=parameters_by_part(model),
        matrix_weights=round((per_token - attention) / 6),
        steps=train.steps,
        tokens_per_step=train.batch_size * T,
        data=data,
        teacher=teacher,
        weight_flops=(per_token - attention) * tokens,
        attention_flops=attention * tokens,
        memory=memory(rows),
        cache_bytes=cache_bytes(model_config, 1, T, activation_size=target.activation_size),
        micro_batches={size: memory(size).total_bytes for size in sizes},
        measured_step_seconds=measured_step_seconds,
    )


def _workload(config: PretrainConfig, model: GPT, target: Target, micro_batch: int, processes: int) -> Workload:
    steps = config.train.batch_size // micro_batch
    at_once = 2 if steps > 1 and processes == 1 and target.on_cpu and can_pair(model, target.threads) else 1
    return Workload(
        model,
        config.optim,
        micro_batch,
        steps,
        target.activation_size,
        target.on_cpu,
        at_once,
        compiled=bool(config.runtime.compile),
        activation_checkpointing=config.runtime.activation_checkpointing,
    )


def plan_teacher(config: PretrainConfig, data: TokenCount | None, tokens: int) -> TeacherPlan | None:
    """Return what the teacher of a run takes, which reads the data once or along with the student's `tokens`."""
    if config.distill is None:
        return None
    shape = read_config(find_checkpoint(config.distill.teacher))
    with torch.device("meta"):
        model = GPT(shape)
    forward = model.train_flops_per_token(shape.context_length) / 3
    assert shape.vocab_size is not None
    top_k = min(config.distill.top_k, shape.vocab_size)
    kept = None if data is None else data.tokens * record_dtype(shape.vocab_size, top_k).itemsize
    if kept is None or kept > config.distill.cache_bytes:
        return TeacherPlan(model.num_parameters(), forward * tokens, None)
    assert data is not None
    return TeacherPlan(model.num_parameters(), WINDOWS_A_TOKEN * forward * data.tokens, kept)


def parameters_by_part(model: GPT) -> dict[str, int]:
    """Count the parameters of each part; a tied head counts as embedding."""
    parts = dict.fromkeys(("embedding", "attention", "mlp", "norms", "head"), 0)
    for name, weight in model.named_parameters():
        if "norm" in name.split(".")[-2]:
            part = "norms"
        elif name.startswith("blocks."):
            part = "attention" if ".attention." in name else "mlp"
        else:
            part = "head" if name.startswith("head.") else "embedding"
        parts[part] += weight.numel()
    return parts


def this_machine(config: PretrainConfig) -> Target:
    """Return the device that the run file asks for, measured in half a second."""
    runtime = make_runtime(config.runtime)
    device = runtime.device
    known = accelerators.find(machine.processor_name(device)) if device.type == "cuda" else None
    peak = known and (known.flops_per_second if runtime.dtype == torch.bfloat16 else known.float32_flops_per_second)
    return Target(
        name=f"{machine.processor_name(device)}, {count(runtime.threads, 'thread')}" if known is None else known.name,
        flops_per_second=peak or machine.matmul_peak(device, runtime.dtype),
        memory_bytes=machine.device_memory_bytes(device),
        read_bytes_per_second=known.read_bytes_per_second if known else machine.read_bytes_per_second(device),
        watts=known.watts if known else None,
        activation_size=runtime.dtype.itemsize,
        on_cpu=device.type == "cpu",
        threads=runtime.threads,
    )


def named_accelerator(name: str, runtime: RuntimeConfig) -> Target:
    """Return a device by its maker's data sheet, in the run's precision; ConfigError lists those that are known."""
    known = accelerators.find(name)
    if known is None:
        names = ", ".join(accelerator.name.lower() for accelerator in accelerators.ACCELERATORS)
        raise ConfigError(f"--on: no accelerator {name!r}; there are {names}, or give --peak-flops and --memory")
    return Target(
        known.name,
        known.float32_flops_per_second if runtime.dtype == "float32" else known.flops_per_second,
        known.memory_bytes,
        known.read_bytes_per_second,
        known.watts,
        _activation_size(runtime),
        on_cpu=False,
    )


def other_accelerator(flops_per_second: float, memory_bytes: int | None, runtime: RuntimeConfig) -> Target:
    """Return a device by its figures; the peak is taken for that of the run's precision."""
    size = _activation_size(runtime)
    return Target("accelerator", flops_per_second, memory_bytes, None, None, size, on_cpu=False)


def _activation_size(runtime: RuntimeConfig) -> int:
    """Return the bytes of an activation on an accelerator, where `auto` is bfloat16."""
    return 4 if runtime.dtype == "float32" else 2


def plan(
    config: PretrainConfig,
    target: Target,
    rates: Rates,
    *,
    measure: bool = False,
    processes: int = 1,
    bytes_per_second: float | None = None,
) -> Plan:
    """Return the plan; with `measure`, time from a few real steps on this machine. GptcliError where they do not fit,
    ConfigError where a process would have nothing to do."""
    if config.train.batch_size < processes:
        raise ConfigError(
            f"--processes: {processes} is more than the {count(config.train.batch_size, 'sequence')} of a step; plan "
            "fewer, or raise train.batch_size"
        )
    found = make_plan(
        config, target, rates, measured_step_seconds=None, processes=processes, bytes_per_second=bytes_per_second
    )
    if not measure:
        return found
    if not found.fits:
        needed = amount(found.memory.total_bytes, "B")
        raise GptcliError(f"--measure: the run needs {needed} of memory and does not fit; gptcli plan says what does")
    model_config = dataclasses.replace(config.model, vocab_size=find_vocabulary(config)[1])
    _, times = step_times(config, model_config, make_runtime(config.runtime))
    return dataclasses.replace(found, measured_step_seconds=statistics.median(times))
