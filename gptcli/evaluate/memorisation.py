"""Measures of what a model has learnt by heart: passages that it recites, secrets that it prefers, texts that it knows.

Extraction: a prefix of the training text, continued greedily (Carlini et al. 2023). Exposure: the rank of a canary's
secret among others of the same form, in bits (Carlini et al. 2019). Membership: whether loss or Min-K%++ (Zhang et al.
2024) tell training text from held-out text, as the area under the curve.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gptcli.config.generate import GenerateOptions
from gptcli.data.filters.canaries import CODE_DIGITS, Canary
from gptcli.data.shards import TokenArray
from gptcli.evaluate.intervals import wilson
from gptcli.evaluate.scoring import Sequence as Scorable
from gptcli.evaluate.scoring import hidden_states, score_sequences
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import evaluating
from gptcli.train.loaded_model import LoadedModel
from gptcli.train.loss import chunked_logits

PREFIX, SUFFIX = 25, 25  # tokens of a passage that are given, and that are to come
MEMBER_TOKENS = 64
LOWEST_SHARE = 0.2  # of Min-K%++
REFERENCES = 255  # secrets of the same form, beside which a canary's own is ranked
RESAMPLES = 1000

Floats = NDArray[np.float64]


def windows(tokens: TokenArray, count: int, length: int, mark: int | None, seed: int) -> list[list[int]]:
    """Return up to `count` windows of `length` tokens that lie within a document each, drawn at random, none twice."""
    draw, found = random.Random(seed), dict[int, list[int]]()
    if len(tokens) < length:
        return []
    for _ in range(20 * count):
        if len(found) >= count:
            break
        start = draw.randrange(len(tokens) - length + 1)
        ids = tokens.read(start, length).tolist()
        if start not in found and mark not in ids:
            found[start] = ids
    return list(found.values())


def greedy(loaded: LoadedModel, prompts: Sequence[list[int]], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the likeliest continuation of each prompt, as many tokens as asked for."""
    engine = Engine(loaded.model, loaded.tokenizer, loaded.runtime)
    requests = [
        Request(prompt, GenerateOptions(temperature=0.0, max_tokens=length, stop_at_eos=False))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    capacity = max(map(len, prompts), default=0) + max(lengths, default=0) + 2
    for completion in engine.run(requests, capacity=min(capacity, engine.context_length)):
        completion.check()
        yield completion.ids


@dataclass(frozen=True)
class Extraction:
    """The part of passages that came out after their prefixes."""

    passages: int
    whole: int  # came out to the end
    share: float  # of their tokens that came out before the first that is wrong
    longest: int  # tokens in a row

    def as_dict(self) -> dict[str, Any]:
        rate = self.whole / self.passages if self.passages else None
        return {**vars(self), "rate": rate, "interval": wilson(self.whole, self.passages)}


def extraction(loaded: LoadedModel, passages: Sequence[list[int]]) -> Extraction:
    """Continue the first PREFIX tokens of each passage, and compare with what follows them in it."""
    prompts, wanted = [ids[:PREFIX] for ids in passages], [ids[PREFIX:] for ids in passages]
    runs = []
    for ids, true in zip(greedy(loaded, prompts, [len(ids) for ids in wanted]), wanted, strict=True):
        same = (one == other for one, other in zip(ids, true, strict=False))
        runs.append(next((place for place, equal in enumerate(same) if not equal), min(len(ids), len(true))))
    whole = sum(run == len(true) for run, true in zip(runs, wanted, strict=True))
    share = sum(runs) / max(1, sum(map(len, wanted)))
    return Extraction(len(runs), whole, share, max(runs, default=0))


# ------------------------------------------------------------------------------------------------------------ canaries


def canary_report(loaded: LoadedModel, canaries: Sequence[Canary], seed: int) -> list[dict[str, Any]]:
    """Return for each kind and number of repeats, of which 0 is the control, what came out and the mean exposure."""
    encode, first = loaded.tokenizer.encode, loaded.tokenizer.bos_ids
    texts = [(encode(canary.prompt), encode(canary.prompt + canary.secret)) for canary in canaries]
    cut = [_common(prompt, whole) for prompt, whole in texts]  # a token may reach over the border
    fits = [len(whole) + len(first) <= loaded.model.config.context_length for _, whole in texts]
    prompts = [whole[:at] for (_, whole), at in zip(texts, cut, strict=True)]
    wanted = [whole[at:] for (_, whole), at in zip(texts, cut, strict=True)]
    asked = [number for number in range(len(canaries)) if fits[number]]
    written = greedy(loaded, [prompts[n] for n in asked], [len(wanted[n]) for n in asked])
    out = {number: ids == wanted[number] for number, ids in zip(asked, written, strict=True)}
    bits = exposures(loaded, [canary for canary in canaries if canary.kind == "code"], seed)
    groups: dict[tuple[str, int], list[int]] = {}
    for number in asked:
        groups.setdefault((canaries[number].kind, canaries[number].repeats), []).append(number)
    found = []
    for (kind, repeats), members in sorted(groups.items()):
        exposed = [bits[canaries[number].id] for number in members if canaries[number].id in bits]
        came_out = sum(out[number] for number in members)
        found.append(
            {
                "kind": kind,
                "repeats": repeats,
                "canaries": len(members),
                "extracted": came_out,
                "interval": wilson(came_out, len(members)),
                "exposure_bits": float(np.mean(exposed)) if exposed else None,
            }
        )
    return found


def exposures(loaded: LoadedModel, codes: Sequence[Canary], seed: int) -> dict[str, float]:
    """Return log2 of REFERENCES + 1 less log2 of the rank of each code among drawn ones, by the canary's id."""
    encode, first = loaded.tokenizer.encode, loaded.tokenizer.bos_ids
    draw = random.Random(seed)
    found = {}
    for canary in codes:
        others = ["".join(draw.choices("0123456789", k=CODE_DIGITS)) for _ in range(REFERENCES)]
        texts = [encode(canary.prompt + secret) for secret in (canary.secret, *others)]
        starts = [max(1, len(first) + _common(encode(canary.prompt), ids)) for ids in texts]
        pairs = zip(texts, starts, strict=True)
        scored = score_sequences(
            loaded.model, (Scorable([*first, *ids], start) for ids, start in pairs), loaded.runtime
        )
        nats = [float(part.nats.double().sum()) for part in scored]
        rank = 1 + sum(value < nats[0] for value in nats[1:])
        found[canary.id] = math.log2(REFERENCES + 1) - math.log2(rank)
    return found


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


# ---------------------------------------------------------------------------------------------------------- membership


@dataclass(frozen=True)
class Membership:
    """The power of a score to tell members from others: 0.5 is chance."""

    auc: float
    interval: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        return {"auc": self.auc, "interval": list(self.interval)}


def membership(
    loaded: LoadedModel, members: Sequence[list[int]], others: Sequence[list[int]], seed: int
) -> dict[str, Membership]:
    """Return the area under the curve of loss and Min-K%++ between windows of training and of held-out text."""
    scores = [familiarity(loaded, texts) for texts in (members, others)]
    return {name: auc(scores[0][name], scores[1][name], seed) for name in scores[0]}


@torch.inference_mode()
def familiarity(loaded: LoadedModel, texts: Iterable[list[int]]) -> dict[str, Floats]:
    """Return two scores of each text, larger for what the model knows: minus the mean nats, and Min-K%++."""
    model, first = loaded.model, loaded.tokenizer.bos_ids
    vocab_size, losses, lowest = loaded.tokenizer.vocab_size, list[float](), list[float]()
    with evaluating(model):
        for ids in texts:
            fed = [*first, *ids][:-1]
            hidden = hidden_states(model, [tuple(fed)], loaded.runtime)[len(first) - 1 if first else 0 :]
            wanted = torch.tensor(ids if first else ids[1:], device=hidden.device)
            log_p, standard = [], []
            for start, logits in chunked_logits(hidden, model.head, model.config.logit_softcap):
                logprobs = logits[:, :vocab_size].double().log_softmax(-1)
                own = logprobs.gather(1, wanted[start : start + len(logprobs), None])[:, 0]
                p = logprobs.exp()
                mean = (p * logprobs).sum(-1)
                spread = ((p * logprobs.square()).sum(-1) - mean.square()).clamp_min(1e-12).sqrt()
                log_p.append(own)
                standard.append((own - mean) / spread)
            losses.append(float(torch.cat(log_p).mean()))
            ranked = torch.cat(standard).sort().values
            lowest.append(float(ranked[: max(1, round(LOWEST_SHARE * len(ranked)))].mean()))
    return {"loss": np.array(losses), "min_k_plus_plus": np.array(lowest)}


def auc(members: Floats, others: Floats, seed: int) -> Membership:
    """Return the probability that a member scores higher than another, with a percentile bootstrap interval."""
    draw = np.random.default_rng(seed)
    drawn = [_auc(draw.choice(members, len(members)), draw.choice(others, len(others))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Membership(_auc(members, others), (float(low), float(high)))


def _auc(members: Floats, others: Floats) -> float:
    """Return Mann and Whitney's statistic over its greatest value; ties count half."""
    ranked = np.sort(others)
    below = ranked.searchsorted(members, side="left").sum()
    not_above = ranked.searchsorted(members, side="right").sum()
    return float((below + not_above) / 2 / (len(members) * len(others)))
