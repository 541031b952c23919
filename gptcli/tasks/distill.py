"""Distillation: learn what a larger model says may come next, beside what does come (Hinton et al. 2015).

    loss = (1 - alpha) CE + alpha T^2 KL(p || q),   p = softmax(teacher / T),   q = softmax(student / T)

The teacher's k likeliest tokens are outcomes of their own, all other tokens together are one more: so the mass that the
teacher gives to the rest is learnt as mass, where renormalising the k would teach the student that nothing else ever
comes (that bias: Anshumann et al. 2025). With k = V it is the KL of the whole vocabulary.

What the teacher says of a token depends on what it reads before it. Kept in a cache, that is at least half of its own
context (but at the beginning of the text), wherever the student's rows cut; without one, it is the student's row.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptcli.base.report import Report
from gptcli.base.units import amount, count
from gptcli.config.data import TokenizerConfig
from gptcli.config.distill import DistillConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import PretrainConfig
from gptcli.data.batches import IGNORE, Batch
from gptcli.data.shards import TokenArray, read_index
from gptcli.data.taught import Taught, TaughtTokens, keep_taught, record_dtype
from gptcli.device.runtime import Runtime
from gptcli.evaluate.scoring import batch_tokens, hidden_states
from gptcli.model.gpt import GPT
from gptcli.tasks.task import Reference
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.loss import batch_hidden, chunked_logits, head_loss

WINDOWS_A_TOKEN = 2  # of the teacher, for the cache: half of each is read for the other half


@dataclass(frozen=True)
class Teacher:
    """A model that is learnt from."""

    options: DistillConfig
    identity: list[str]  # hashes of its weights
    config: ModelConfig
    vocab_size: int  # of its tokenizer, which is the student's; its head may have more rows
    first_token: int  # of every window
    load: Callable[[], GPT]  # in eval mode

    @property
    def top_k(self) -> int:
        return min(self.options.top_k, self.vocab_size)

    @property
    def hop(self) -> int:
        """Return how many tokens of a window it says something about for the cache, after what it reads first."""
        return max(1, self.config.context_length // WINDOWS_A_TOKEN)

    def cache_bytes(self, tokens: int) -> int:
        """Return what is kept of a text of so many tokens."""
        return tokens * record_dtype(self.vocab_size, self.top_k).itemsize

    def teach(self, model: GPT, hidden: Tensor) -> Taught:
        """Return what the model says after hidden (N, C)."""
        parts = [
            self._likeliest(logits) for _, logits in chunked_logits(hidden, model.head, model.config.logit_softcap)
        ]
        return Taught(*map(torch.cat, zip(*parts, strict=True)))

    def _likeliest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = (logits[:, : self.vocab_size] / self.options.temperature).log_softmax(-1)
        best = log_p.topk(self.top_k)
        return best.indices, best.values


def keep_what_it_says(
    teacher: Teacher, directories: Iterable[Path], cache: Path, runtime: Runtime, report: Report
) -> list[TaughtTokens] | None:
    """Return what the teacher says of the training tokens of prepared directories, from the cache as far as it is
    there; None where that takes more bytes than the run file allows."""
    texts = [(directory, TokenArray(directory, "train")) for directory in directories]
    needed = sum(teacher.cache_bytes(len(tokens)) for _, tokens in texts)
    if needed > teacher.options.cache_bytes:
        if teacher.options.cache_bytes:
            report.message(
                f"distill.cache_bytes: {amount(needed, 'B')} are more than {amount(teacher.options.cache_bytes, 'B')}; "
                "the teacher reads along instead"
            )
        return None
    model = functools.cache(teacher.load)
    dtype = record_dtype(teacher.vocab_size, teacher.top_k)
    found = []
    for directory, tokens in texts:
        teach = functools.partial(_records, teacher, model, tokens, dtype, runtime)
        kept = cache / "taught" / _key(teacher, directory, runtime)
        found.append(keep_taught(kept, len(tokens), dtype, teach, report))
    said = "now" if model.cache_info().currsize else "before"
    report.message(
        f"teacher: what it says of {count(sum(len(text) for _, text in texts), 'token')} was computed {said}"
    )
    return found


def _key(teacher: Teacher, directory: Path, runtime: Runtime) -> str:
    """Return the name of a cache: a hash of all that it depends on."""
    shards = [shard["sha256"] for shard in read_index(directory)["splits"]["train"].shards]
    facts = [teacher.identity, shards, teacher.options.temperature, teacher.top_k, str(runtime.dtype)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@torch.inference_mode()
def _records(
    teacher: Teacher, model: Callable[[], GPT], tokens: TokenArray, dtype: np.dtype[Any], runtime: Runtime,
    start: int, end: int,
) -> NDArray[Any]:  # fmt: skip
    """Return what is kept of the tokens from start to end."""
    records = np.empty(end - start, dtype)
    before = teacher.config.context_length - teacher.hop
    windows = [(max(0, at - before), at, min(at + teacher.hop, end)) for at in range(start, end, teacher.hop)]
    at_once = max(1, batch_tokens(on_cpu=runtime.on_cpu) // teacher.config.context_length)
    for number in range(0, len(windows), at_once):
        group = windows[number : number + at_once]
        read = [tokens.read(first, last - 1 - first).tolist() for first, _, last in group]
        hidden = hidden_states(model(), [(teacher.first_token, *ids) for ids in read], runtime)
        lengths = [len(ids) + 1 for ids in read]
        wanted = [part[at - first :] for part, (first, at, _) in zip(torch.split(hidden, lengths), group, strict=True)]
        said = teacher.teach(model(), torch.cat(wanted))
        rows = slice(group[0][1] - start, group[-1][2] - start)
        records["ids"][rows], records["log_p"][rows] = said.ids.cpu().numpy(), said.log_p.cpu().numpy()
    return records


def wanted_tokenizer(config: PretrainConfig) -> TokenizerConfig:
    """Return the tokenizer that a run asks for: its teacher's, where it has a teacher and names none."""
    if config.distill is None or config.tokenizer.path is not None:
        return config.tokenizer
    return TokenizerConfig(path=str(find_checkpoint(config.distill.teacher) / "tokenizer.json"))


@dataclass(frozen=True)
class DistillObjective:
    """The loss of what a batch's targets teach and what the teacher says of them."""

    teacher: Teacher
    model: Reference | None  # the teacher where it reads along; None: batches bring what it says

    def __call__(self, model: GPT, batch: Batch, runtime: Runtime) -> Tensor:
        """Return the loss summed over the targets, a float32 scalar."""
        if batch.taught is not None:
            taught = Taught(*(part.to(runtime.device).flatten(0, 1) for part in batch.taught))
        else:
            assert self.model is not None
            taught = self.model.evaluate(
                lambda model: self.teacher.teach(model, batch_hidden(model, batch, runtime).flatten(0, 1))
            )
        hidden = batch_hidden(model, batch, runtime).flatten(0, 1)
        targets = batch.targets.to(runtime.device).flatten()
        options, index = self.teacher.options, targets.clamp_min(0)

        def loss(logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            said = Taught(taught.ids[rows], taught.log_p[rows])
            return distillation(logits.float(), index[rows], said, options.alpha, options.temperature)

        head, cap = model.head, model.config.logit_softcap
        return head_loss(hidden, head.weight, targets != IGNORE, loss, cap=cap, bias=head.bias)


def distillation(
    logits: Tensor, targets: Tensor, taught: Taught, alpha: float, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the loss (N,) of logits (N, V), and its slope by them (N, V). targets (N,), taught (N, k)."""
    log_p = taught.log_p - taught.log_p.logsumexp(-1, keepdim=True).clamp_min(0)  # rounded, they may be more than 1
    p = log_p.exp()
    p_rest = (1 - p.sum(-1)).clamp_min(0)
    log_q = logits.log_softmax(-1)
    nats = -log_q.gather(1, targets[:, None])[:, 0]
    slope = log_q.exp()
    slope.scatter_add_(1, targets[:, None], -torch.ones_like(slope[:, :1])).mul_(1 - alpha)
    if temperature != 1.0:
        log_q = (logits / temperature).log_softmax(-1)
    q = log_q.exp()
    q_top = q.gather(1, taught.ids)
    q_rest = q.scatter_(1, taught.ids, 0.0).sum(-1)  # exact where 1 - q_top would be rounding
    p_rest = torch.where(q_rest > 0, p_rest, 0.0)  # k is the whole vocabulary
    ratio = p_rest / q_rest.clamp_min(torch.finfo(q.dtype).tiny)
    divergence = (p * (log_p - log_q.gather(1, taught.ids))).sum(-1) + torch.xlogy(p_rest, ratio)
    q.mul_((1 - ratio)[:, None]).scatter_(1, taught.ids, q_top - p)
    slope.add_(q, alpha=alpha * temperature)
    return (1 - alpha) * nats + alpha * temperature**2 * divergence, slope
