"""What a model recites of passages that its text repeats, and what the measures against that cost.

Five passages of 60 words of Python's documentation are planted 64 times each, at random places of TEXT, of which the
last tenth is held out. The same model is trained for the same steps on that text, on it with the goldfish loss, and on
what `corpus dedup --passages 50` leaves of it. Each is asked to go on, greedily, after the first 32 tokens of each
passage. The cost is held-out bits per byte above those of the plain model, seed by seed. Five other passages, never
planted, are the control. The tokenizer is one, of the deduplicated text.

    python tests/bench/memorisation.py TEXT [--seeds 3] [--steps 600] [-s KEY=VALUE]

Learnt, of Shakespeare, 600 steps, two seeds:
  - plain: 4 and 5 of 5 passages whole, 81 and 100 % of their tokens, 2.1450 and 2.1487 held-out bits per byte.
  - goldfish loss: 0 of 5, 1 and 2 % of their tokens, at most 5 in a row, +0.0411 and +0.0409. Deduplicated: 0 of 5,
    0 %, -0.0282 and -0.0390.
  - The control, passages that were not planted: 0 of 5 each time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

from harness import gptcli, note, run

PASSAGES, WORDS, REPEATS, PROMPT = 5, 60, 64, 32
VARIANTS = {
    "plain": ("planted.jsonl",),
    "goldfish loss, drop_every 4": ("planted.jsonl", "loss.goldfish.drop_every=4"),
    "deduplicated": ("clean.jsonl",),
}
RECIPE = """
tokenizer: {path: tokenizer.json}
data: {validation: [held-out.txt]}
model: {num_layers: 4, hidden_size: 128, num_heads: 4, context_length: 256}
train: {batch_size: 8, eval_every_steps: 1000000, save_every_steps: 1000000, sample_every_steps: 1000000}
runtime: {device: cpu, threads: 1, compile: false}
"""


def passages(draw: random.Random) -> list[str]:
    """Return passages of Python's documentation of WORDS words, none of one topic with another."""
    from gptcli.data.python_english import documents

    whole = [text.split() for text in documents()]
    chosen = draw.sample([words for words in whole if len(words) > 4 * WORDS], 2 * PASSAGES)
    starts = [draw.randrange(len(words) - WORDS) for words in chosen]
    return [" ".join(words[start : start + WORDS]) for words, start in zip(chosen, starts, strict=True)]


def plant(text: str, planted: list[str], draw: random.Random, work: Path) -> None:
    """Write planted.jsonl, with each passage among the paragraphs of random documents, and held-out.txt."""
    paragraphs = text.split("\n\n")
    cut = len(paragraphs) * 9 // 10
    (work / "held-out.txt").write_text("\n\n".join(paragraphs[cut:]))
    documents = [paragraphs[start : start + 12] for start in range(0, cut, 12)]
    for passage in [passage for passage in planted for _ in range(REPEATS)]:
        document = draw.choice(documents)
        document.insert(draw.randint(0, len(document)), passage)
    lines = [json.dumps({"id": number, "text": "\n\n".join(text)}) for number, text in enumerate(documents)]
    (work / "planted.jsonl").write_text("\n".join(lines) + "\n")


def recited(run_directory: Path, texts: list[str]) -> tuple[int, float, int]:
    """Return how many passages come out to their end, and the mean and the most tokens before the first wrong one."""
    from gptcli.api.open_model import open_model
    from gptcli.evaluate.memorisation import greedy

    loaded = open_model(str(run_directory), device="cpu", threads=1)
    ids = [loaded.tokenizer.encode("\n\n" + text) for text in texts]
    wanted = [passage[PROMPT:] for passage in ids]
    written = greedy(loaded, [passage[:PROMPT] for passage in ids], [len(rest) for rest in wanted])
    runs = []
    for found, true in zip(written, wanted, strict=True):
        same = [one == other for one, other in zip(found, true, strict=True)]
        runs.append(same.index(False) if False in same else len(same))
    whole = sum(run == len(rest) for run, rest in zip(runs, wanted, strict=True))
    return whole, statistics.mean(run / len(rest) for run, rest in zip(runs, wanted, strict=True)), max(runs)


def trained(work: Path, name: str, settings: list[str]) -> float:
    """Train a model as a run of `work`, and return its held-out bits per byte."""
    changes = [part for setting in (*settings, f"run_dir={name}") for part in ("-s", setting)]
    done = run(gptcli("pretrain", "recipe.yaml", "--json", *changes), cwd=work)
    return float(json.loads(done.stdout)["validation"]["bits_per_byte"])


def main() -> None:
    """Train each variant with each seed, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    draw = random.Random(64)
    chosen = passages(draw)
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="memorisation-") as directory:
        work = Path(directory)
        plant(given.text.read_text(), chosen[:PASSAGES], draw, work)
        run(gptcli("corpus", "dedup", "planted.jsonl", "-q", "--passages", "50", "-o", "clean.jsonl"), cwd=work)
        learn = ("train-tokenizer", "clean.jsonl", "-o", "tokenizer.json", "--vocab-size", "1024")
        run(gptcli(*learn), cwd=work)
        (work / "recipe.yaml").write_text(RECIPE)
        for seed in range(1, given.seeds + 1):
            for number, (name, (train, *more)) in enumerate(VARIANTS.items()):
                settings = [f"data.train=[{train}]", f"train.steps={given.steps}", f"runtime.seed={seed}", *more]
                bits = trained(work, f"{seed}-{number}", [*settings, *given.set])
                whole, share, most = recited(work / f"{seed}-{number}", chosen[:PASSAGES])
                control = recited(work / f"{seed}-{number}", chosen[PASSAGES:])[0]
                found[name].append((bits, whole))
                cost = bits - found["plain"][-1][0]
                told = f"{whole} of {PASSAGES} whole, {share:.0%} of their tokens, at most {most} in a row"
                note(f"seed {seed}, {name}: {bits:.4f} bits per byte ({cost:+.4f}); {told}; control {control}")
    for name, runs in found.items():
        costs = [bits - plain for (bits, _), (plain, _) in zip(runs, found["plain"], strict=True)]
        spread = f"{statistics.mean(costs):+.4f} ({min(costs):+.4f}..{max(costs):+.4f})"
        print(f"| {name} | {', '.join(str(whole) for _, whole in runs)} of {PASSAGES} | {spread} |")


if __name__ == "__main__":
    sys.exit(main())
