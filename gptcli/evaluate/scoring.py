"""Log-probabilities of given tokens: sequences packed end to end, many in a forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gptcli.base.errors import NumericalError
from gptcli.data.packing import group_by_tokens
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import BY_ONE, Together
from gptcli.device.runtime import Runtime
from gptcli.model.attention import PackedSequences
from gptcli.model.gpt import GPT, evaluating
from gptcli.train.loss import likeliest, target_nats

BATCH_TOKENS = 8192  # tokens of a forward pass in evaluation
CPU_BATCH_TOKENS = 2048  # more needs memory and saves a CPU no time


class Sequence(NamedTuple):
    """Ids, of which those from `first` (at least 1) on are scored, each given all before it. The last is never fed to
    the model, so that a context of T tokens holds T + 1."""

    ids: list[int]
    first: int


class Scored(NamedTuple):
    """The model's scores of the ids of a sequence."""

    nats: Tensor  # -log p of each, float32 on the CPU
    greedy: bool | None  # whether every one was the likeliest, where that was asked for


def batch_tokens(*, on_cpu: bool) -> int:
    """Return tokens of a forward pass."""
    return min(BATCH_TOKENS, CPU_BATCH_TOKENS) if on_cpu else BATCH_TOKENS


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return ids of a context and of what follows it, cut where the tokens of the whole text cut it.

    As lm-eval does it: spaces at the end of the context go to the continuation, since that is where byte-level BPE
    puts them. Where a token reaches over the border, both are encoded alone.
    """
    bare = context.rstrip()
    spaces = context[len(bare) :]
    before, whole = tokenizer.encode(bare), tokenizer.encode(bare + spaces + continuation)
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    return before, tokenizer.encode(spaces + continuation)


@torch.inference_mode()
def score_sequences(
    model: GPT, sequences: Iterable[Sequence], runtime: Runtime, *, greedy: bool = False, together: Together = BY_ONE
) -> Iterator[Scored]:
    """Yield what the model makes of each sequence, in order; NumericalError where its output is not finite.

    Sequences that differ in their last id only, as the possible answers of one token do, share a pass of the model.
    Of several processes, which all call this, each computes every n-th batch, and all get the same.
    """

    def score(batch: list[Sequence]) -> Tensor:
        nats, hits = _score_batch(model, batch, runtime, greedy)
        return torch.cat((nats, hits))

    tokens = batch_tokens(on_cpu=runtime.on_cpu)
    with evaluating(model):
        batches = group_by_tokens(sequences, tokens, lambda sequence: len(sequence.ids) - 1)
        for batch, numbers in together.compute(batches, score):
            targets = len(numbers) // 2 if greedy else len(numbers)
            yield from _cut(batch, numbers[:targets], numbers[targets:].bool() if greedy else None)


def _score_batch(model: GPT, batch: list[Sequence], runtime: Runtime, greedy: bool) -> tuple[Tensor, Tensor]:
    """Return of all scored ids of a batch, end to end, the nats, and whether each is the likeliest if `greedy`."""
    starts: dict[tuple[int, ...], int] = {}  # what is fed to the model, once -> where it begins
    total = 0
    places: list[int] = []
    targets: list[int] = []
    for ids, first in batch:
        if first >= len(ids):  # nothing to score
            continue
        fed = tuple(ids[:-1])
        if fed not in starts:
            starts[fed] = total
            total += len(fed)
        places += range(starts[fed] + first - 1, starts[fed] + len(fed))
        targets += ids[first:]
    if not targets:
        return torch.empty(0), torch.empty(0)
    device = runtime.device
    hidden = hidden_states(model, list(starts), runtime)[torch.tensor(places, device=device)]  # (n, C)
    wanted, cap = torch.tensor(targets, device=device), model.config.logit_softcap
    nats = target_nats(hidden, model.head, wanted, cap=cap).cpu()
    if not math.isfinite(nats.double().sum()):
        raise NumericalError("the model gives a non-finite loss; the checkpoint is damaged or was trained to NaN")
    return nats, (likeliest(hidden, model.head, cap=cap) == wanted).cpu() if greedy else torch.empty(0)


def _cut(batch: list[Sequence], nats: Tensor, hits: Tensor | None) -> Iterator[Scored]:
    """Yield of each sequence what is its own."""
    done = 0
    for sequence in batch:
        scored = slice(done, done + max(0, len(sequence.ids) - sequence.first))
        done = scored.stop
        yield Scored(nats[scored], None if hits is None else bool(hits[scored].all()))


def hidden_states(model: GPT, inputs: list[tuple[int, ...]], runtime: Runtime) -> Tensor:
    """Return the head's input (N, C) at every token of the inputs, laid end to end."""
    lengths = list(map(len, inputs))
    if max(lengths) > model.config.context_length:
        raise ValueError(f"{max(lengths)} tokens do not fit a context of {model.config.context_length}")
    ids = torch.tensor([index for fed in inputs for index in fed], device=runtime.device)
    if len(set(lengths)) == 1:  # whole windows need no layout
        return model.hidden(ids.view(len(inputs), -1), dtype=runtime.dtype).flatten(0, 1)
    layout = PackedSequences(lengths, device=runtime.device)
    return model.hidden(ids[None], dtype=runtime.dtype, layout=layout)[0]
