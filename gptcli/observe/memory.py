"""Where the memory of training and writing goes: bytes by part, from the shape of the model alone.

The letters are those of model.GPT; `a` is the bytes of an activation. `activation_bytes` counts what autograd keeps,
which tests/test_memory.py compares with what it does keep.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass

import torch

from gptcli.config.train import OptimConfig
from gptcli.evaluate.scoring import batch_tokens
from gptcli.model.attention import QUERY_BLOCK, AttentionRule
from gptcli.model.gpt import GPT
from gptcli.train.loss import chunk_rows, held_rows
from gptcli.train.muon import muon_tiles
from gptcli.train.optimizer_base import batch_elements

# Of a pretraining process before it makes its model: Python, torch and the libraries (torch 2.13 on Linux).
PROCESS_BYTES = 235 << 20
COMPILER_BYTES = 180 << 20  # of PyTorch's compiler in the process
# glibc's heap against the tensors in it that come and go, in every order and aligned, so that a hole seldom fits again:
# measured 1.3 to 2.2 of what is neither weights, gradients nor optimizer state, which stay where they are.
HEAP_FACTOR = 1.65
STAYING = ("weights", "gradients", "optimizer state")


@dataclass(frozen=True)
class Workload:
    """One optimizer step as memory sees it."""

    model: GPT  # may be on the meta device
    optim: OptimConfig
    micro_batch: int  # sequences in a forward pass
    micro_steps: int
    activation_size: int  # bytes: 4 for float32, 2 for bfloat16
    on_cpu: bool
    at_once: int = 1  # micro-batches that are computed beside each other
    compiled: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the moment when they are most."""

    moment: str
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def training_memory(work: Workload) -> Memory:
    """Return the peak of a run. On a CPU with the process and the slack of its heap; on an accelerator, of its
    tensors."""
    weights, optimizer = weight_bytes(work), optimizer_bytes(work)
    held = {"weights": weights, "optimizer state": optimizer}
    at_once = work.at_once
    gradients = weights if work.micro_steps > at_once else 0
    activations = activation_bytes(work) * at_once
    largest = max(weight.numel() for weight in work.model.parameters()) * 4
    moments = (
        Memory(
            "loss",
            held | {"gradients": gradients, "activations": activations, "logits and head": head_bytes(work) * at_once},
        ),
        Memory(
            "backward pass",
            held
            | {
                "gradients": max(gradients, largest),
                "activations": activations,
                "backward of a block": backward_bytes(work) * at_once,
            },
        ),
        Memory(
            "end of the backward pass",
            held
            | {
                # Of two at once, the second has gradients of its own where there are some already.
                "gradients": weights + ((largest if at_once == 1 else weights) if gradients else 0),
                "activations": _block_bytes(work) * _tokens(work) * at_once,
            },
        ),
        Memory("update", held | {"gradients": weights, "optimizer's own work": update_bytes(work)}),
        Memory("validation", held | {"validation": validation_bytes(work)}),
    )
    peak = max(moments, key=lambda moment: moment.total_bytes)
    if not work.on_cpu:
        return peak
    coming_and_going = sum(size for part, size in peak.parts.items() if part not in STAYING)
    slack = round((HEAP_FACTOR - 1) * coming_and_going)
    return Memory(
        peak.moment, peak.parts | {"heap slack": slack, "process": PROCESS_BYTES + work.compiled * COMPILER_BYTES}
    )


def weight_bytes(work: Workload) -> int:
    """Return the bytes of the weights, float32 while training; their gradients take as many."""
    return 4 * work.model.num_parameters()


def optimizer_bytes(work: Workload) -> int:
    """Return the bytes of the optimizers' state: one number a weight for Muon, two for AdamW."""
    muon = sum(_muon_shapes(work).values())
    return 4 * (muon + 2 * (work.model.num_parameters() - muon))


def update_bytes(work: Workload) -> int:
    """Return the most that an update takes: three copies of Muon's largest batch of matrices, for each worked on at
    once."""
    limit = batch_elements(on_cpu=work.on_cpu)
    batches = [min(total, max(limit, rows * columns)) for (rows, columns), total in _muon_shapes(work).items()]
    return 4 * 3 * work.at_once * max(batches, default=0)


def _muon_shapes(work: Workload) -> Counter[tuple[int, ...]]:
    """Count the weights in Muon's matrices by the shape in which they are orthogonalised."""
    shapes: Counter[tuple[int, ...]] = Counter()
    if work.optim.name != "muon":
        return shapes
    model = work.model
    matrices = model.matrix_shapes()
    weights = {name: weight for name, weight in model.named_parameters() if name in matrices}
    step_flops = work.micro_steps * _tokens(work) * model.train_flops_per_token(model.config.context_length)
    tiles = muon_tiles(
        weights, matrices, step_flops=step_flops, max_overhead=work.optim.muon_overhead, dtype=_dtype(work)
    )
    for name, tile in tiles.items():
        shapes[tile] += weights[name].numel()
    return shapes


def _dtype(work: Workload) -> torch.dtype:
    return torch.float32 if work.activation_size == 4 else torch.bfloat16


def _tokens(work: Workload) -> int:
    return work.micro_batch * work.model.config.context_length


def activation_bytes(work: Workload) -> int:
    """Return all that the forward pass of a micro-batch keeps for its backward pass, but for the loss's own."""
    config, a = work.model.config, work.activation_size
    outside = 8 + _norm_bytes(work) + a * config.hidden_size
    if config.embedding_norm:
        outside += _norm_bytes(work) + (0 if config.norm_weight else a * config.hidden_size)
    outside += a * config.hidden_size if config.dropout else 0
    copies = 0 if a == 4 else a * sum(w.numel() for name, w in work.model.named_parameters() if "blocks." in name)
    return _tokens(work) * (config.num_layers * _block_bytes(work) + outside) + copies


def _block_bytes(work: Workload) -> int:
    """Return what a block keeps per token: two norms with their outputs, attention, the MLP's hidden layer, dropout's
    masks."""
    config, a = work.model.config, work.activation_size
    gates = 4 if config.gated else 1 if config.activation == "relu2" else 2
    masks = 2 * a * config.hidden_size if config.dropout else 0
    return (
        2 * (_norm_bytes(work) + a * config.hidden_size) + _attention_bytes(work) + a * gates * config.mlp_size + masks
    )


def _norm_bytes(work: Workload) -> int:
    """Return what a norm keeps per token beside its output, which the product after it keeps."""
    config = work.model.config
    if config.norm == "layernorm":
        return work.activation_size * (config.hidden_size + 2)
    return 4 + (work.activation_size * config.hidden_size if config.norm_weight else 0)


def _attention_bytes(work: Workload) -> int:
    """Return what attention keeps per token: on a CPU the weights of every block of queries too, elsewhere none of
    them."""
    config, a = work.model.config, work.activation_size
    H, K, D, T = config.num_heads, config.kv_heads, config.head_size, config.context_length
    output = a * H * D
    if not work.on_cpu:
        rotated = (H + K) * D * ((config.position == "rope") + config.qk_norm)
        return output + a * ((H + 2 * K) * D + rotated) + 4 * H
    normed = 4 * (H + K) if config.qk_norm else 0
    if config.qk_norm and (config.qk_norm_weight or config.position != "rope"):
        normed += a * (H + K) * D * (1 + config.qk_norm_weight)
    keys = (
        a * K * D if K != H and config.position == "rope" else 0
    )  # rotated beside the queries, before they are spread
    scores = statistics.mean(_scores(config.window(layer), T) for layer in range(config.num_layers))
    copies = 1 + bool(config.dropout) + bool(config.attention_softcap)  # softmax, dropout's mask, tanh
    return output + normed + keys + a * 3 * H * D + math.ceil(copies * a * H * scores / T)


def _scores(window: int | None, tokens: int) -> int:
    """Count the scores of a head and sequence that a CPU holds: each block of queries with the keys that any of it
    sees."""
    rule, count = AttentionRule(window=window).within(tokens), 0
    for start in range(0, tokens, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, tokens)
        count += (end - start) * (end - rule.first_key(start))
    return count


def head_bytes(work: Workload) -> int:
    """Return what loss.head_cross_entropy takes: both gradients, and a chunk of logits."""
    config, a = work.model.config, work.activation_size
    assert config.vocab_size is not None
    matrix = config.vocab_size * config.hidden_size
    chunk = config.vocab_size * min(chunk_rows(config.vocab_size, on_cpu=work.on_cpu), _tokens(work))
    held = min(held_rows(config.vocab_size, on_cpu=work.on_cpu, dtype=_dtype(work)), _tokens(work))
    copies = 0 if a == 4 else a * matrix  # of the head, in the dtype of the activations
    chunk_bytes = (4 * chunk if config.logit_softcap else 0) + a * (config.vocab_size + config.hidden_size) * held
    return a * _tokens(work) * config.hidden_size + 4 * matrix + copies + chunk_bytes + a * matrix


def backward_bytes(work: Workload) -> int:
    """Return what the backward pass of an MLP holds beside what was kept: gradients of its hidden layer and of its
    input."""
    config = work.model.config
    gates = 3 if config.gated else 2
    return work.activation_size * _tokens(work) * (gates * config.mlp_size + 3 * config.hidden_size)


def validation_bytes(work: Workload) -> int:
    """Return a forward pass of metrics.score_documents, which keeps nothing: the widest moment of a block, or the
    logits."""
    config, a = work.model.config, work.activation_size
    tokens = config.context_length * max(1, batch_tokens(on_cpu=work.on_cpu) // config.context_length)
    width = max(2 * config.mlp_size, (config.num_heads + 2 * config.kv_heads) * config.head_size * 2)
    block = a * tokens * (width + 2 * config.hidden_size)
    assert config.vocab_size is not None
    chunk = config.vocab_size * min(chunk_rows(config.vocab_size, on_cpu=work.on_cpu), tokens)
    return max(block, a * tokens * config.hidden_size + chunk * (a + 4))
