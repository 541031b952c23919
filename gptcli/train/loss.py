"""Cross-entropy of the next token, in chunks: the logits of a batch are never held whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.data.batches import IGNORE, Batch
from gptcli.device.runtime import Runtime
from gptcli.model.attention import PackedSequences
from gptcli.model.gpt import GPT

CHUNK_LOGITS = 1 << 21  # logits of a chunk: 8 MB in float32, which stays in a CPU's last-level cache
CHUNK_ROWS = 256  # and at least so many rows: products of fewer are slow where the vocabulary is large
DEVICE_CHUNK_LOGITS = 1 << 26  # elsewhere products of few rows waste the device
CHUNKS_HELD = 4  # slopes in bfloat16 that wait on a CPU for one product: widening each gradient of the head is slow


def chunk_rows(vocab_size: int, *, on_cpu: bool) -> int:
    """Return how many hidden states have their logits made at once."""
    return max(CHUNK_ROWS, CHUNK_LOGITS // vocab_size) if on_cpu else max(1, DEVICE_CHUNK_LOGITS // vocab_size)


def held_rows(vocab_size: int, *, on_cpu: bool, dtype: torch.dtype) -> int:
    """Return how many hidden states have their slopes held for one product with them."""
    return chunk_rows(vocab_size, on_cpu=on_cpu) * (CHUNKS_HELD if on_cpu and dtype != torch.float32 else 1)


RowLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Of logits (N, V) of some rows, which it may overwrite: the loss of each (N,), float32, and its slope (N, V)."""


class _HeadLoss(torch.autograd.Function):
    """Loss and gradients chunk by chunk in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float, kept: Tensor, loss: RowLoss
    ) -> Tensor:
        total, *gradients = _sum_and_gradients(
            hidden, weight, bias, cap, kept, loss, learns_weight=ctx.needs_input_grad[1]
        )
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        # In place: nobody else has them, and autograd refuses a second backward pass.
        of_weight, of_bias = (None if gradient is None else gradient.mul_(scale) for gradient in (d_weight, d_bias))
        return d_hidden.mul_(scale.to(d_hidden.dtype)), of_weight, of_bias, None, None, None


def _sum_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float, factors: Tensor, loss: RowLoss, *,
    learns_weight: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the sum of each row's loss times its factor (N,), and its gradients by hidden, weight and bias."""
    matrix, factors = weight.to(hidden.dtype), factors.unsqueeze(1)
    on_cpu = matrix.device.type == "cpu"
    rows = chunk_rows(matrix.shape[0], on_cpu=on_cpu)
    held = held_rows(matrix.shape[0], on_cpu=on_cpu, dtype=hidden.dtype)
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    d_weight: Tensor | None = None
    d_bias = None if bias is None else torch.zeros_like(bias)
    for first in range(0, hidden.shape[0], held):
        group = (hidden[first : first + held] * factors[first : first + held]).to(hidden.dtype)
        slopes = group.new_empty(group.shape[0], matrix.shape[0])
        for start in range(0, group.shape[0], rows):
            chunk = slice(first + start, first + start + rows)
            slope = slopes[start : start + rows]
            each = _loss_and_slope(chunk, hidden, matrix, bias, cap, loss, out=slope)
            total += (each * factors[chunk, 0]).sum()
            torch.mm(slope, matrix, out=d_hidden[chunk])
        if d_bias is not None:
            d_bias += (slopes * factors[first : first + held]).sum(0)
        if not learns_weight:
            continue
        if d_weight is None:
            d_weight = (slopes.t() @ group).to(weight.dtype)
        elif d_weight.dtype == slopes.dtype:
            d_weight.addmm_(slopes.t(), group)
        else:
            d_weight += slopes.t() @ group
    if learns_weight and d_weight is None:  # no row: a gradient all the same, for FSDP sums those that all have
        d_weight = torch.zeros_like(weight)
    return total, d_hidden.mul_(factors), d_weight, d_bias


def _loss_and_slope(
    chunk: slice, hidden: Tensor, matrix: Tensor, bias: Tensor | None, cap: float, loss: RowLoss, *, out: Tensor
) -> Tensor:
    """Return the loss of each row of a chunk (N,); `out` (N, V) becomes its slope in the logits before the cap.

    On a CPU every pass over `out` shows, so that there is no copy in float32 and no zero for rows that do not count.
    """
    torch.mm(hidden[chunk], matrix.t(), out=out)
    if bias is not None:
        out.add_(bias)
    logits = out.mul_(1 / cap).tanh_().to(torch.float32, copy=True).mul_(cap) if cap else out
    each, slope = loss(logits, chunk)
    if cap:
        out.square_().neg_().add_(1).mul_(slope)  # the slope of tanh
    elif slope is not out:
        out.copy_(slope)
    return each


def _of_targets(targets: Tensor) -> RowLoss:
    """Return the loss of rows whose targets (N,) are these."""
    return lambda logits, rows: _nats(logits, targets[rows])


def _nats(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log softmax(logits)[targets] (N,), float32, and its slope by the logits (N, V), in their place."""
    index = targets.unsqueeze(1)
    log_p = logits.gather(1, index).squeeze(1).float() - logits.amax(-1).float()
    p = torch.softmax(logits, -1, out=logits)
    log_p += _largest(p).float().log()  # one over the sum of exp(logit - largest logit)
    # softmax - one-hot: the sum of the other probabilities is exact where 1 - p would be nothing but rounding.
    flat, places = p.view(-1), torch.arange(len(p), device=p.device) * p.shape[1] + targets
    flat.index_fill_(0, places, 0.0)
    others = p.sum(-1)
    flat.index_copy_(0, places, -others)
    return torch.where(others < 0.5, others.float().neg().log1p(), log_p).neg_(), logits


def _largest(p: Tensor) -> Tensor:
    """Return the largest of each row (N, V), none below zero: their bits have their order, and a CPU compares those of
    bfloat16 faster."""
    return p.view(torch.int16 if p.dtype.itemsize == 2 else torch.int32).amax(-1).view(p.dtype)


def head_loss(
    hidden: Tensor, head_weight: Tensor, kept: Tensor, loss: RowLoss, *, cap: float, bias: Tensor | None = None
) -> Tensor:
    """Return the sum, a float32 scalar, of a loss of softcap(hidden W^T + b) over the rows that are kept.

    hidden (N, C), head_weight (V, C), bias (V,), kept (N,) bool.
    """
    return _HeadLoss.apply(hidden, head_weight, bias, cap, kept, loss)  # type: ignore[no-untyped-call]


def head_cross_entropy(
    hidden: Tensor, head_weight: Tensor, targets: Tensor, *, cap: float, bias: Tensor | None = None
) -> Tensor:
    """Return the summed nats, a float32 scalar, of -log softmax(softcap(hidden W^T + b))[targets].

    hidden (..., C), head_weight (V, C), bias (V,), targets (...) int64 with IGNORE where nothing is learnt.
    """
    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    return head_loss(flat, head_weight, wanted != IGNORE, _of_targets(wanted.clamp_min(0)), cap=cap, bias=bias)


def batch_hidden(model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
    """Return the head's input (B, T, C) of a batch, whole windows or packed sequences."""
    layout = None
    if batch.lengths is not None:
        layout = PackedSequences(batch.lengths, device=runtime.device, dropout=model.dropout_rate)
    return model.hidden(batch.inputs.to(runtime.device), dtype=runtime.dtype, layout=layout)


def next_token_nats(model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
    """Return the summed cross-entropy of the batch's targets, a float32 scalar: what pretraining minimises."""
    hidden, targets = batch_hidden(model, batch, runtime), batch.targets.to(runtime.device)
    if batch.lengths is not None:  # rows, of whose tokens many may be prompts: no logits for those
        kept = targets != IGNORE
        hidden, targets = hidden[kept], targets[kept]
    return head_cross_entropy(hidden, model.head.weight, targets, cap=model.config.logit_softcap, bias=model.head.bias)


class _HeadLogProbabilities(torch.autograd.Function):
    """log p of each target, chunk by chunk; the backward pass makes the logits anew instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets, bias)
        ctx.cap = cap
        matrix = weight.to(hidden.dtype)
        rows = chunk_rows(len(matrix), on_cpu=matrix.device.type == "cpu")
        slopes = hidden.new_empty(min(rows, len(hidden)), len(matrix))
        parts = []
        for start in range(0, len(hidden), rows):
            chunk = slice(start, min(start + rows, len(hidden)))
            out = slopes[: chunk.stop - start]
            parts.append(_loss_and_slope(chunk, hidden, matrix, bias, cap, _of_targets(targets), out=out))
        return torch.cat(parts).neg_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_log_p,) = gradients
        hidden, weight, targets, bias = ctx.saved_tensors
        _, d_hidden, d_weight, d_bias = _sum_and_gradients(
            hidden, weight, bias, ctx.cap, -d_log_p, _of_targets(targets), learns_weight=ctx.needs_input_grad[1]
        )
        return d_hidden, d_weight, None, None, d_bias


def target_hidden(model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
    """Return the head's input (N, C) where a packed batch has its N targets."""
    hidden = batch_hidden(model, batch, runtime)
    return hidden[0, (batch.targets[0] != IGNORE).to(runtime.device)]


def target_log_probabilities(model: GPT, batch: Batch, hidden: Tensor) -> tuple[Tensor, ...]:
    """Return for each of the sequences of a packed batch the log-probabilities of its targets, float32 (targets,).

    `hidden` is what `target_hidden` gives.
    """
    assert batch.lengths is not None
    kept = batch.targets[0] != IGNORE
    counts = [int(part.sum()) for part in torch.split(kept, list(batch.lengths))]
    targets, cap = batch.targets[0][kept].to(hidden.device), model.config.logit_softcap
    log_p: Tensor = _HeadLogProbabilities.apply(hidden, model.head.weight, targets, cap, model.head.bias)  # type: ignore[no-untyped-call]
    return torch.split(log_p, counts)


@torch.no_grad()
def divergence_nats(model: GPT, hidden: Tensor, reference: GPT, reference_hidden: Tensor) -> Tensor:
    """Return KL(model || reference) of what both say comes next, (N,) float32, where they have hidden (N, C)."""
    parts = []
    pairs = zip(
        chunked_logits(hidden, model.head, model.config.logit_softcap),
        chunked_logits(reference_hidden, reference.head, reference.config.logit_softcap),
        strict=True,
    )
    for (_, logits), (_, others) in pairs:
        log_p = logits.log_softmax(-1)
        parts.append((log_p.exp() * (log_p - others.log_softmax(-1))).sum(-1))
    return torch.cat(parts)


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed nats and the number of targets that are not IGNORE, of logits (..., V) float32, targets (...)
    int64."""
    flat = logits.reshape(-1, logits.shape[-1])
    nats = F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORE, reduction="sum")
    return nats, (targets != IGNORE).sum()


@torch.no_grad()
def target_nats(hidden: Tensor, head: Tensor | nn.Module, targets: Tensor, *, cap: float) -> Tensor:
    """Return -log p of every target, float32 in the shape of `targets`; 0 where it is IGNORE. Arguments as above.

    `head`: its weight, or the module itself, whose weights may be packed.
    """
    wanted = targets.reshape(-1)
    parts = [
        F.cross_entropy(logits, wanted[start : start + len(logits)], ignore_index=IGNORE, reduction="none")
        for start, logits in chunked_logits(hidden, head, cap)
    ]
    return torch.cat(parts).view(targets.shape)


@torch.no_grad()
def likeliest(hidden: Tensor, head: Tensor | nn.Module, *, cap: float) -> Tensor:
    """Return the id of the largest logit at every place, int64 in the shape of hidden without its last dimension."""
    parts = [logits.argmax(-1) for _, logits in chunked_logits(hidden, head, cap)]
    return torch.cat(parts).view(hidden.shape[:-1])


def chunked_logits(hidden: Tensor, head: Tensor | nn.Module, cap: float) -> Iterator[tuple[int, Tensor]]:
    """Yield chunks of the logits (rows, V) in float32, each with the number of its first row."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    weight = head.to(hidden.dtype) if isinstance(head, Tensor) else None
    vocab_size = int(head.shape[0] if isinstance(head, Tensor) else head.out_features)  # type: ignore[arg-type]
    rows = chunk_rows(vocab_size, on_cpu=flat.device.type == "cpu")
    for start in range(0, len(flat), rows):
        piece = flat[start : start + rows]
        logits = (head(piece) if weight is None else piece @ weight.t()).float()  # type: ignore[operator]
        if cap:
            logits = logits.div_(cap).tanh_().mul_(cap)
        yield start, logits


@dataclass(frozen=True)
class Output:
    """The result of `forward`: logits (B, T, V), float32, and the mean loss in nats where there were labels."""

    logits: Tensor
    loss: Tensor | None


def forward(model: Callable[[Tensor], Tensor], ids: Tensor, *, labels: Tensor | None = None) -> Output:
    """Return the logits of ids (B, T), and the loss of `labels` (B, T) as Hugging Face has them: not shifted, IGNORE
    where nothing is learnt. Row t of the logits is for label t + 1; the loss is the mean over the labels that count,
    0 where none does."""
    logits = model(ids)
    if labels is None:
        return Output(logits, None)
    nats, targets = cross_entropy(logits[:, :-1], labels[:, 1:])
    return Output(logits, nats / targets.clamp_min(1))
