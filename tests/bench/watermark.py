"""What a watermark shows and costs, on a trained model: the quickstart's, or any run's.

Texts begin with the first words of paragraphs of HUMAN, and are found again from their text alone, encoded anew. False
positives are counted in windows of HUMAN itself. The cost is what each token that was drawn has in bits, less what the
model expects of a draw there: 0 for draws by chance, so that what a text is about does not count. Speeds are of pairs:
the same texts without and with a key, in turn.

    python tests/bench/watermark.py RUN HUMAN... [--texts 300] [--only found|human|cost|speed]

Learnt, of a quickstart model of 1.68 bits per byte (`gptcli quickstart --budget 5m`), HUMAN its own texts:
  - Of 500 texts 96.8 % were found at temperature 0.8 and 91.4 % at 0.7 with top-k 50. What is not found is recited,
    counts up or goes round in circles: there is little chance in it. With beginnings from its held-out text alone
    98.4 and 91.6 % of 1,000; from the ids written, at most 0.2 points more than from the text.
  - Another quickstart model, of 1.69 bits per byte: of 1,000 texts that begin as held-out text 97.0 and 93.1 %, of
    500 that begin as text of its training 95.6 and 86.6 %. Of a model of Shakespeare's plays (2 minutes, 2.06 bits per
    byte), which recites little, 100.0 and 99.8 % of 1,000.
  - Context 2 found 98.3 and 93.1 % of those, and 99.2 and 96.1 where context 4 found 99.5 and 97.2, of a model less
    trained (numbers by an earlier generator): no clear gain. A mixture of likelihood ratios over p in the place of
    -log(1 - u) found from 0.2 points less to 0.3 more of context 4, and is not as simple.
  - Cost +0.003 +- 0.010 and -0.019 +- 0.013 bits a token, unmarked -0.011 +- 0.010 and +0.002 +- 0.013. Speed on two
    shared cores: alone +2.1 % (-1.0..+4.2) and -0.5 % (-1.8..+3.0), again +0.3 % (-1.0..+3.2) and +0.9 % (-1.3..+2.9);
    32 at once +1.4 % (+0.9..+3.6) and -1.1 % (-3.4..+1.3), again +1.8 % (-0.4..+3.2) and +1.0 % (-0.3..+1.5).
    A draw from 2,048 tokens takes 14.6 us with a key, numbers and all, and 15.4 without; with top-k 50 27 and 25, from
    50,257 tokens 88 and 140.
  - Human text, 12,954 windows x 4 keys: 5.26 % below 0.05, 1.10 % below 0.01, 0.10 % below 0.001, none below 1e-5. Of
    12,177 windows x 40 keys 5.02, 1.01 and 0.108 % (+0.5, +0.8 and +1.2 sd by the spread between keys, which is 1.24 of
    a binomial's at 0.05, since docstrings repeat each other); 319,659 windows of random tokens 5.03, 0.99, 0.100 %.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from gptcli.api.open_model import open_model
from gptcli.config.generate import GenerateOptions
from gptcli.evaluate.scoring import hidden_states
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.safeguards import NONE, Safeguards
from gptcli.generate.watermark import CONTEXT, Watermark, score
from gptcli.train.loaded_model import LoadedModel
from gptcli.train.loss import chunked_logits

TOKENS, LIMIT = 50, 1e-5
SETTINGS = {"temperature 0.8": {"temperature": 0.8}, "0.7 with top-k 50": {"temperature": 0.7, "top_k": 50}}
RATES = (0.05, 0.01, 0.001, LIMIT)


def key(number: int, context: int = CONTEXT) -> Watermark:
    """Return a key of its own for each number."""
    return Watermark(random.Random(number).randbytes(32), context, "")


def requests(loaded: LoadedModel, human: str, count: int, **options: object) -> list[Request]:
    """Return requests for texts that begin as paragraphs of human text do."""
    draw = random.Random(1)
    paragraphs = [text.split() for text in human.split("\n\n") if len(text.split()) > 12]
    prompts = [" ".join(draw.choice(paragraphs)[:8]) for _ in range(count)]
    given = {"max_tokens": TOKENS, "stop_at_eos": False, **options}
    return [
        Request(loaded.tokenizer.encode(prompt), GenerateOptions(seed=number, **given))
        for number, prompt in enumerate(prompts)
    ]


def written(loaded: LoadedModel, asked: Sequence[Request], watermark: Watermark | None, slots: int) -> list[Completion]:
    """Return the texts that a model writes, with or without a mark."""
    safeguards = Safeguards(watermark=watermark) if watermark else NONE
    return list(Engine(loaded.model, loaded.tokenizer, loaded.runtime, slots=slots, safeguards=safeguards).run(asked))


def found(loaded: LoadedModel, human: str, texts: int, context: int) -> None:
    """Print the share of texts that are found, each with a key of 20; from their text, and from the ids written."""
    for name, options in SETTINGS.items():
        log_p: dict[str, list[float]] = {"text": [], "ids": []}
        for number in range(20):
            asked = requests(loaded, human, texts, **options)[number::20]
            mark = key(number, context)
            done = written(loaded, asked, mark, 16)
            log_p["text"] += [score(mark, loaded.tokenizer.encode(each.text)).log_p for each in done]
            log_p["ids"] += [score(mark, each.ids).log_p for each in done]
        shares = {of: sum(value < math.log(LIMIT) for value in p) / len(p) for of, p in log_p.items()}
        median = statistics.median(log_p["text"]) / math.log(10)
        told = f"{shares['text']:.4f} of {texts}, from the ids {shares['ids']:.4f}; median log10 p {median:.1f}"
        print(f"| {name}, context {context}: found at p < {LIMIT:g} | {told} |", flush=True)


def human_windows(loaded: LoadedModel, human: str, keys: int = 4) -> None:
    """Print how often keys find themselves in windows of text that people wrote."""
    ids = loaded.tokenizer.encode(human)
    windows = [ids[start : start + TOKENS] for start in range(0, len(ids) - TOKENS + 1, TOKENS)]
    log_p = [score(key(number), window).log_p for window in windows for number in range(keys)]
    for rate in RATES:
        counted, expected = sum(value < math.log(rate) for value in log_p), rate * len(log_p)
        deviations = (counted - expected) / math.sqrt(expected * (1 - rate))
        told = f"{counted:,} of {len(windows):,} windows x {keys} keys, {expected:,.1f} expected ({deviations:+.1f} sd)"
        print(f"| human text with p < {rate:g} | {told} |", flush=True)


@torch.inference_mode()
def excess(loaded: LoadedModel, done: Sequence[Completion]) -> list[float]:
    """Return for each token drawn its bits, less those that the model expects of a draw there."""
    bits: list[float] = []
    for completion in done:
        prompt = [*loaded.tokenizer.bos_ids, *completion.request.prompt]
        fed = (*prompt, *completion.ids[:-1])
        hidden = hidden_states(loaded.model, [fed], loaded.runtime)[len(prompt) - 1 :]
        wanted = torch.tensor(completion.ids)
        for start, logits in chunked_logits(hidden, loaded.model.head, loaded.model.config.logit_softcap):
            logprobs = logits[:, : loaded.tokenizer.vocab_size].double().log_softmax(-1)
            own = logprobs.gather(1, wanted[start : start + len(logprobs), None])[:, 0]
            expected = (logprobs.exp() * logprobs).sum(-1)
            bits += ((expected - own) / math.log(2)).tolist()
    return bits


def cost(loaded: LoadedModel, human: str, texts: int) -> None:
    """Print the cost in bits of a token, of the marked and of the same texts unmarked."""
    asked = requests(loaded, human, texts, temperature=1.0, max_tokens=200)
    for name in ("marked", "unmarked"):
        bits: list[float] = []
        for number in range(16):
            watermark = key(number) if name == "marked" else None
            bits += excess(loaded, written(loaded, asked[number::16], watermark, 32))
        error = statistics.stdev(bits) / math.sqrt(len(bits))
        told = f"{statistics.mean(bits):+.4f} +- {error:.4f} bits a token, of {len(bits):,} tokens"
        print(f"| cost at temperature 1, {name} | {told} |", flush=True)


def speed(loaded: LoadedModel, human: str, rounds: int) -> None:
    """Print how much longer the same texts take with a key, alone and 32 at once: many short pairs, since what else a
    machine does comes in spells."""
    for slots, texts, tokens in ((1, 2, 50), (32, 32, 50)):
        for name, options in SETTINGS.items():
            asked = requests(loaded, human, texts, **{**options, "max_tokens": tokens})
            for watermark in (key(1), None):
                written(loaded, asked, watermark, slots)
            shares, rates = [], []
            for number in range(rounds):
                times = {}
                for watermark in (None, key(number)) if number % 2 else (key(number), None):
                    began = time.perf_counter()
                    written(loaded, asked, watermark, slots)
                    times[watermark is not None] = time.perf_counter() - began
                shares.append(times[True] / times[False] - 1)
                rates.append(texts * tokens / times[False])
            draws = [statistics.median(random.Random(n).choices(shares, k=rounds)) for n in range(400)]
            interval = f"95 % interval {sorted(draws)[10]:+.1%}..{sorted(draws)[-11]:+.1%}"
            told = f"{statistics.median(shares):+.1%} time ({interval}), at {statistics.median(rates):,.0f} tokens/s"
            print(f"| {slots} at once, {name}: with a key | {told} |", flush=True)


def main() -> None:
    """Measure each part, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("human", nargs="+", type=Path)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--only", choices=["found", "human", "cost", "speed"])
    given = parser.parse_args()
    loaded = open_model(given.run, device="cpu", threads=1)
    human = "\n\n".join(path.read_text() for path in given.human)
    if given.only in (None, "found"):
        found(loaded, human, given.texts, given.context)
    if given.only in (None, "human"):
        human_windows(loaded, human)
    if given.only in (None, "cost"):
        cost(loaded, human, given.texts)
    if given.only in (None, "speed"):
        speed(loaded, human, given.rounds)


if __name__ == "__main__":
    sys.exit(main())
