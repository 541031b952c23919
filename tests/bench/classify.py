"""Lines a second that a classifier labels, beside transformers' pipeline at the same shape.

    gptcli        gptcli.api.classify.Classifier on the run, as `gptcli classify` uses it
    transformers  pipeline("text-classification") on a GPT2ForSequenceClassification with the run's layers, width,
                  heads, vocabulary and tokenizer and random weights, in batches of --batch, lines sorted by length

Both float32, in this process, in turn, after one round that does not count; medians of --rounds. Printed beside them:
the matrix products' share of this machine's peak, which is what is left to win.

Run:
    python tests/bench/classify.py RUN LINES.txt [--rounds 3] [--batch 16 64] [--json]      # pip install transformers

Learnt, on two Zen 3 cores:
  - Passes of 2,048 tokens instead of 8,192, of lines of like length, take three quarters of the time: they fit a cache.
  - int8 rows and weights (FBGEMM) are 0.9 to 1.5 times as fast in the products at these widths: not worth the bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import harness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    harness.warn_of_load()

    import torch

    from gptcli.api.classify import Classifier
    from gptcli.device.machine import matmul_peak

    texts = given.lines.read_text().splitlines()
    classifier = Classifier(given.run)
    member = classifier.ensemble.members[0]
    tokens = sum(map(len, member.tokenizer.encode_batch(texts))) + len(texts)
    label = {"gptcli": lambda: sum(1 for _ in classifier.records(({"text": text} for text in texts), "text"))}
    label |= _pipelines(classifier, sorted(texts, key=len), given.batch)
    speeds: dict[str, list[float]] = {name: [] for name in label}
    peaks = []
    for number in range(given.rounds + 1):
        peaks.append(matmul_peak(torch.device("cpu"), torch.float32))
        for name, work in label.items():
            started = time.perf_counter()
            assert work() == len(texts)
            if number:
                speeds[name].append(len(texts) / (time.perf_counter() - started))
    found = {name: harness.spread(values) for name, values in speeds.items()}
    flops = member.model.train_flops_per_token(0) / 3 * tokens / len(texts)  # a line's, forward
    share = statistics.median(speeds["gptcli"]) * flops / max(peaks)
    if given.json:
        json.dump(
            {"lines_per_second": found, "tokens_per_line": tokens / len(texts), "matmul_share": share}, sys.stdout
        )
        print()
        return
    print(f"{len(texts):,} lines of {tokens / len(texts):.1f} tokens; {member.model.num_parameters():,} parameters")
    for name, spread in found.items():
        print(f"{name:<28} {spread['median']:>8,.0f} lines/s ({spread['min']:,.0f}..{spread['max']:,.0f})")
    print(f"gptcli's matrix products take {share:.0%} of the matmul peak, {max(peaks) / 1e9:.0f} GFLOP/s")


def _pipelines(classifier, texts: list[str], batches: list[int]) -> dict[str, Callable[[], int]]:
    try:
        import tokenizers
        import transformers
    except ImportError:
        return {}
    transformers.logging.set_verbosity_error()
    member = classifier.ensemble.members[0]
    ours = member.model.config
    config = transformers.GPT2Config(
        vocab_size=ours.vocab_size,
        n_positions=ours.context_length,
        n_embd=ours.hidden_size,
        n_layer=ours.num_layers,
        n_head=ours.num_heads,
        num_labels=len(classifier.ensemble.labels),
        pad_token_id=0,
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(member.tokenizer.content.decode())
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", truncation=True)
    return {
        f"transformers, batch {batch}": lambda batch=batch: sum(1 for _ in pipe(texts, batch_size=batch))
        for batch in batches
    }


if __name__ == "__main__":
    main()
