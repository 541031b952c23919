"""The memory of training: bytes by part at the moment when they are most, on tensors without values.

The real model, loss and optimizers run a forward pass, a backward pass and an update. All blocks are alike, and all
chunks of logits, so that small numbers of layers and sequences say what any number takes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gptcli.config.train import OptimConfig
from gptcli.evaluate.scoring import batch_tokens
from gptcli.model.gpt import GPT
from gptcli.observe.meter import metered
from gptcli.train.loss import head_cross_entropy, held_rows, target_nats
from gptcli.train.optimizers import make_optimizers

# Of a pretraining process before it makes its model: Python, torch and the libraries (torch 2.13 on Linux).
PROCESS_BYTES = 235 << 20
COMPILER_BYTES = 180 << 20  # of PyTorch's compiler in the process
KERNEL_BYTES = 48 << 20  # of libraries' code that steps run, and imports alone do not touch
# glibc's heap against the tensors in it that come and go, in every order and aligned, so that a hole seldom fits again:
# measured 1.3 to 2.2 of what is neither weights, gradients nor optimizer state, which stay where they are.
HEAP_FACTOR = 1.65
STAYING = ("weights", "gradients", "optimizer state")
MEASURED_LAYERS = 3


@dataclass(frozen=True)
class Workload:
    """One optimizer step as memory sees it."""

    model: GPT  # on the meta device
    optim: OptimConfig
    micro_batch: int  # sequences in a forward pass
    micro_steps: int
    activation_size: int  # bytes: 4 for float32, 2 for bfloat16
    on_cpu: bool
    at_once: int = 1  # micro-batches that are computed beside each other
    compiled: bool = False
    activation_checkpointing: bool = False

    @property
    def rows(self) -> int:
        """Return the sequences in an optimizer step."""
        return self.micro_batch * self.micro_steps

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.activation_size == 4 else torch.bfloat16

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.on_cpu else "meta")


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the moment when they are most."""

    moment: str
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Pass:
    """Bytes of a micro-batch's forward and backward pass, beside weights and gradients."""

    activations: int  # kept for the backward pass
    loss: int  # most while the loss is computed, activations included
    first_block: int  # most while the backward pass goes through head and last block
    last_block: int  # most while it goes through the first block and the embedding


def training_memory(work: Workload) -> Memory:
    """Plan the peak of a run: on a CPU of its process with the slack of its heap, on an accelerator of its tensors."""
    weights = 4 * work.model.num_parameters()
    state, update, validation = fixed_bytes(whole_step(work))
    found, at_once = pass_bytes(work), work.at_once
    added_up = work.micro_steps > at_once  # to gradients that are there already
    largest = max(weight.numel() for weight in work.model.parameters()) * 4
    held = {"weights": weights, "optimizer state": state}
    gradients = weights if added_up else 0
    # Of two at once, the second has gradients of its own where there are some already.
    apart = (largest if at_once == 1 else weights) if added_up else 0
    activations = found.activations * at_once
    moments = (
        Memory("loss", held | {"gradients": gradients, "activations": activations,
                               "logits and head": found.loss * at_once - activations}),
        Memory("backward pass", held | {"gradients": max(gradients, largest), "activations": activations,
                                        "backward of a block": max(0, found.first_block * at_once - activations)}),
        Memory("end of the backward pass", held | {"gradients": weights + apart,
                                                   "activations": found.last_block * at_once}),
        Memory("update", held | {"gradients": weights, "optimizer's own work": update * at_once}),
        Memory("validation", held | {"validation": validation}),
    )  # fmt: skip
    return finished(max(moments, key=lambda moment: moment.total_bytes), work)


def whole_step(work: Workload) -> Workload:
    """Return the step as one micro-batch: what the optimizers take does not depend on how it is cut."""
    return dataclasses.replace(work, micro_batch=work.rows, micro_steps=1, at_once=1)


def finished(peak: Memory, work: Workload) -> Memory:
    """Return the peak with, on a CPU, the process and the slack of its heap."""
    if not work.on_cpu:
        return peak
    coming_and_going = sum(size for part, size in peak.parts.items() if part not in STAYING)
    slack = round((HEAP_FACTOR - 1) * coming_and_going)
    return Memory(peak.moment, peak.parts | {"heap slack": slack} | process_parts(work))


def process_parts(work: Workload) -> dict[str, int]:
    """Return the bytes by part that a process on a CPU takes without a model."""
    return {"kernels": KERNEL_BYTES, "process": PROCESS_BYTES + work.compiled * COMPILER_BYTES}


def pass_bytes(work: Workload) -> Pass:
    """Return what a micro-batch takes: measured, and in a line beyond a few layers and chunks of logits."""
    config = work.model.config
    assert config.vocab_size is not None
    held = held_rows(config.vocab_size, on_cpu=work.on_cpu, dtype=work.dtype)
    most_rows = 2 + -(-2 * held // config.context_length)  # the slopes of a chunk meet those of the one before
    alike = len({config.window(layer) for layer in range(config.num_layers)}) == 1
    layers_known = MEASURED_LAYERS if alike else config.num_layers
    small = dataclasses.replace(work, micro_steps=1, at_once=1, micro_batch=0)

    def by_layers(rows: int) -> Pass:
        few = dataclasses.replace(small, micro_batch=rows)
        return _line(lambda layers: measured_pass(few, layers), layers_known, config.num_layers)

    return _line(by_layers, most_rows, work.micro_batch)


def _line(measure: Callable[[int], Pass], known: int, wanted: int) -> Pass:
    """Return a measure at a number, in a line through the two numbers up to `known` if it is larger."""
    if wanted <= known:
        return measure(wanted)
    fewer, more = (dataclasses.astuple(measure(number)) for number in (known - 1, known))
    return Pass(*(b + (wanted - known) * (b - a) for a, b in zip(fewer, more, strict=True)))


@functools.lru_cache(maxsize=32)
def measured_pass(work: Workload, layers: int) -> Pass:
    """Measure a micro-batch of a model with so many layers."""
    with metered(work.device) as meter:
        model = _model(work, layers)
        weights = list(model.parameters())
        ids = _ids(work, work.micro_batch)
        peaks: list[int] = []  # as the backward pass leaves the last block, and as it comes to the first

        def note(_gradient: torch.Tensor) -> None:
            """Note the most there was beside the gradients of weights."""
            made = sum(4 * weight.numel() for weight in weights if weight.grad is not None)
            peaks.append(meter.reset() - base - made)

        def watch(_block: object, inputs: tuple[torch.Tensor, ...]) -> None:
            inputs[0].register_hook(note)  # type: ignore[no-untyped-call]

        for block in {model.blocks[-1], model.blocks[min(1, layers - 1)]}:
            block.register_forward_pre_hook(watch)
        model.train()
        base = meter.live
        hidden = model.hidden(ids, dtype=work.dtype)
        activations = meter.live - base
        meter.reset()
        loss = head_cross_entropy(hidden, model.head.weight, ids, cap=model.config.logit_softcap)
        in_loss = meter.reset() - base
        del hidden
        torch.autograd.backward(loss)
        note(loss)
    return Pass(activations, in_loss, peaks[0], max(0, peaks[-1]))


@functools.lru_cache(maxsize=4)
def fixed_bytes(work: Workload) -> tuple[int, int, int]:
    """Return what no size of micro-batch changes: the optimizers' state, their work, and a validation."""
    return *update_bytes(work), validation_bytes(work)


def validation_bytes(work: Workload) -> int:
    """Return the most that a forward pass takes which scores held-out text and keeps nothing."""
    with metered(work.device) as meter, torch.no_grad():
        model = _model(work, min(2, work.model.config.num_layers))
        ids = _ids(work, max(1, batch_tokens(on_cpu=work.on_cpu) // work.model.config.context_length))
        model.eval()
        base = meter.live
        meter.reset()
        target_nats(model.hidden(ids, dtype=work.dtype), model.head.weight, ids, cap=model.config.logit_softcap)
        return meter.reset() - base


def update_bytes(work: Workload) -> tuple[int, int]:
    """Return the bytes of the optimizers' state, and the most that a piece of their step takes besides."""
    layers = work.model.config.num_layers
    if work.optim.name != "muon" and layers > MEASURED_LAYERS:  # every matrix by itself
        fewer, more = (
            update_bytes(dataclasses.replace(work, model=meta_model(work, number)))
            for number in (MEASURED_LAYERS - 1, MEASURED_LAYERS)
        )
        return more[0] + (layers - MEASURED_LAYERS) * (more[0] - fewer[0]), more[1]
    with metered(work.device) as meter:
        model = _model(work, layers)
        step_tokens = work.rows * model.config.context_length
        optimizers = make_optimizers(model, work.optim, step_tokens=step_tokens, dtype=work.dtype)
        state = sum(tensor.nbytes for tensor in optimizers.tensors(create=True).values())
        for weight in optimizers.names:
            weight.grad = torch.empty_like(weight)
        most, base = 0, meter.live
        for piece in optimizers.pieces():
            meter.reset()
            piece()
            most = max(most, meter.reset() - base)
        return state, most


def meta_model(work: Workload, layers: int) -> GPT:
    """Return the model with so many layers on the meta device."""
    with torch.device("meta"):
        return _model(work, layers)


def _model(work: Workload, layers: int) -> GPT:
    model = GPT(dataclasses.replace(work.model.config, num_layers=layers))
    model.activation_checkpointing = work.activation_checkpointing
    return model


def _ids(work: Workload, rows: int) -> torch.Tensor:
    return torch.empty(rows, work.model.config.context_length, dtype=torch.int64)
