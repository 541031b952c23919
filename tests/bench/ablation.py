"""What each piece of the `modern` recipe is worth: the recipe with one piece changed, for the same time.

TEXT is split by bytes into 90 % for training and 10 % for validation. The recipe is a run file, shakespeare.yaml by
default. A variant is a handful of overrides of it. A variant's time is that of `--steps` steps of the recipe: first
steps of both are timed in turn in one process, so that other work on the machine slows both, then the variant trains
for as many steps as fit. Its figure is bits per byte over every validation byte: mean and spread (largest - smallest)
over the seeds, and the difference of the means from the recipe's; positive: the piece is worth keeping.
Trainings run two at a time with one thread each.

Run:
    python tests/bench/ablation.py TEXT [--steps 200] [--seeds 3] [--json]
    python tests/bench/ablation.py TEXT --variants "classic" -s model.hidden_size=192   # of another recipe

Learnt, and not kept (Shakespeare, 3 seeds unless it says otherwise):
  - nanochat's scalars of a layer, on the residual stream and on the embedding that is added to it: 2.513 bits per byte
    after 150 steps, 2.516 without, each within 0.004.
  - value residual (Zhou et al. 2024): 2.595 and 2.600 after 100 steps, each within 0.03.
  - value embeddings in every other layer, gated, as nanochat has them, beside the pairs, one seed, in the time of 380
    steps: 2.161 at half of the embedding's rate, 2.168 at a tenth of it, 2.168 without; a step takes 2 to 5 % more.
  - smeared tokens beside the pairs, one seed, in the time of 380 steps: 2.180, 2.168 without; on Python's documentation
    (context 128, batch 8), in that of 300 steps, 2.043 and 2.045.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness

VARIANTS: dict[str, tuple[str, ...]] = {
    "modern": (),
    "AdamW for the matrices": ("optim.name=adamw",),
    "no ramp of the momentum": ("optim.muon_momentum_ramp=0",),
    "no NorMuon": ("optim.normuon=false",),
    "no token pairs": ("model.bigram_rows=0",),
    "cosine decay": ("optim.schedule=cosine", "optim.decay_fraction=1"),
    "decay over the last 40 %": ("optim.decay_fraction=0.4",),
    "decay over all of it": ("optim.decay_fraction=1",),
    "GELU": ("model.activation=gelu",),
    "SwiGLU": ("model.activation=swiglu",),
    "LayerNorm": ("model.norm=layernorm",),
    "no embedding norm": ("model.embedding_norm=false",),
    "no QK-norm": ("model.qk_norm=false",),
    "learned positions": ("model.position=learned",),
    "projections not zero at first": ("model.zero_init_projections=false",),
    "tied head": ("model.tie_embeddings=true", "optim.embedding_learning_rate=null"),
    "logit soft-cap 15": ("model.logit_softcap=15",),
    "logit soft-cap 30": ("model.logit_softcap=30",),
    "half the batch": ("train.batch_size=8",),
    "twice the batch": ("train.batch_size=32",),
    "classic": (
        "model.preset=gpt2",
        "model.bigram_rows=0",
        "optim.preset=classic",
        "optim.learning_rate=1e-3",
        "optim.warmup_steps=20",
    ),
}
TIMED_STEPS = 15


# ----------------------------------------------------------------------------------- one variant, in its own process


def measure(run_file: Path, overrides: list[str], variant: str, steps: int, seeds: int) -> dict[str, object]:
    """Relative time of a step, and bits per byte for each seed."""
    cost = 1.0 if not VARIANTS[variant] else relative_cost(run_file, overrides, VARIANTS[variant])
    found = []
    for seed in range(1, seeds + 1):
        config, state, batches, runtime, finish = begin(run_file, [*overrides, *VARIANTS[variant]], seed)
        fitting = max(1, round(steps / cost))
        for step in range(fitting):
            advance(config, state, batches, runtime, fitting, step)
        found.append(finish())
    return {"variant": variant, "cost": cost, "steps": fitting, "bits_per_byte": found}


def relative_cost(run_file: Path, overrides: list[str], changes: tuple[str, ...]) -> float:
    """Time of a variant's step over that of the recipe's, from steps in turn."""
    sides = [begin(run_file, [*overrides, *more], 1) for more in ((), changes)]
    times: tuple[list[float], list[float]] = ([], [])
    for step in range(TIMED_STEPS):
        for (config, state, batches, runtime, _), found in zip(sides, times, strict=True):
            started = time.process_time()
            advance(config, state, batches, runtime, TIMED_STEPS, step)
            found.append(time.process_time() - started)
    base, changed = (statistics.median(found[3:]) for found in times)
    return changed / base


def begin(run_file: Path, overrides: list[str], seed: int) -> tuple:
    """A run at its first step, and a function that scores it on all validation bytes."""
    from gptcli.base.report import Report
    from gptcli.config import yaml_file
    from gptcli.config.train import PretrainConfig
    from gptcli.data.batches import TokenBatches
    from gptcli.data.prepared import prepare_data
    from gptcli.data.shards import TokenArray
    from gptcli.device.process import own_process
    from gptcli.device.runtime import keep_freed_memory, make_runtime
    from gptcli.evaluate.perplexity import score_documents
    from gptcli.train.initial import new_state
    from gptcli.train.micro_batches import micro_batch_rows

    settings = [*overrides, f"runtime.seed={seed}", "runtime.threads=1", "data.cache_dir=cache"]
    config = yaml_file.load(PretrainConfig, run_file, settings).value
    own_process()
    runtime = make_runtime(config.runtime)
    keep_freed_memory()
    tokenizer, prepared = prepare_data(config.data, config.tokenizer, Report())
    state = new_state(dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size), config, runtime)
    state.model.train()
    batches = TokenBatches(
        TokenArray(prepared, "train"),
        context_length=config.model.context_length,
        batch_size=config.train.batch_size,
        micro_batch_size=micro_batch_rows(
            config.train, config.model.context_length, on_cpu=runtime.device.type == "cpu"
        ),
        first_token=tokenizer.end_of_text,
        seed=seed,
    )
    validation = TokenArray(prepared, "validation")

    def finish() -> float:
        ids = [int(token) for token in validation.read(0, len(validation))]
        (score,) = score_documents(state.model, tokenizer, [ids], runtime)
        return score.bits_per_byte

    return config, state, batches, runtime, finish


def advance(config, state, batches, runtime, steps: int, step: int) -> None:
    from gptcli.train.loop import train_step

    state.optimizers.set_schedule(step, steps)
    train_step(state, batches(step), config.optim.grad_clip_norm, runtime, seed=config.runtime.seed)
    state.step += 1


# ------------------------------------------------------------------------------------------------------ all of them


def compare(
    text: Path, run_file: Path, overrides: list[str], variants: list[str], steps: int, seeds: int
) -> list[dict]:
    def one(variant: str) -> dict:
        options = [*(f"-s{override}" for override in overrides), f"--steps={steps}", f"--seeds={seeds}"]
        command = harness.program("ablation.py", text, f"--run-file={run_file}", f"--one={variant}", *options)
        found = json.loads(harness.run(command, cwd=directory, OMP_NUM_THREADS="1").stdout)
        harness.note(f"{variant}: {', '.join(f'{bits:.4f}' for bits in found['bits_per_byte'])}")
        return found

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        harness.split(text, directory)
        first = one(variants[0])  # alone: it makes the tokenizer and the shards that the others find
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return [first, *pool.map(one, variants[1:])]


def report(results: list[dict]) -> None:
    base = statistics.mean(results[0]["bits_per_byte"])
    print("| variant | time of a step | steps | bits per byte, mean | spread | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    for found in results:
        bits = found["bits_per_byte"]
        mean, spread = statistics.mean(bits), max(bits) - min(bits)
        difference = "" if found is results[0] else f"{mean - base:+.3f}"
        cells = (found["variant"], f"{found['cost']:.2f}", found["steps"], f"{mean:.3f}", f"{spread:.3f}", difference)
        print(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--run-file", type=Path, default=harness.BENCH / "shakespeare.yaml")
    parser.add_argument("--steps", type=int, default=200, help="of the recipe; a variant gets the time of these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", help=f"separated by commas, the recipe goes first; of {', '.join(VARIANTS)}")
    parser.add_argument("-s", "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--one", help="only this one, in this process, in a directory with train.txt, validation.txt")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    run_file = given.run_file.resolve()
    if given.one:
        print(json.dumps(measure(run_file, given.overrides, given.one, given.steps, given.seeds)))
        return
    chosen = [name for name in given.variants.split(",") if name != "modern"] if given.variants else list(VARIANTS)[1:]
    if unknown := set(chosen) - set(VARIANTS):
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    results = compare(given.text.resolve(), run_file, given.overrides, ["modern", *chosen], given.steps, given.seeds)
    if given.json:
        json.dump(results, sys.stdout, indent=2)
        print()
    else:
        report(results)


if __name__ == "__main__":
    main()
