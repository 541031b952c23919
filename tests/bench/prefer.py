"""Learning from preferences beside TRL: the same pairs, weights, batches and steps, in float32.

A GPT is trained on TEXT for a few steps and exported with `gptcli export --to hf`. Pairs are made of TEXT: a passage,
how it goes on (chosen), and a passage from elsewhere (rejected), of different lengths. Then, each in a fresh process:

    gptcli   `gptcli finetune`, task prefer
    trl      `prefer_trl.py`, which trains the exported model: DPOTrainer (dpo, ipo), CPOTrainer (simpo), ORPOTrainer

Both compute the reference's log-probabilities once, before training, and take AdamW with the preset finetune of gptcli.
Printed are, for every loss, the largest difference of the training losses of all steps, the seconds of a step (median)
and those of the whole process. Exit code 1 where a loss differs by more than `--tolerance`.

Run:
    python tests/bench/prefer.py TEXT [--peer-python PYTHON_WITH_TRL] [--losses dpo,ipo,simpo,orpo] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np

from gptcli.data.batches import derived_seed, permute

MODEL = ("model.num_layers=4", "model.hidden_size=256", "model.num_heads=4", "model.context_length=256")
BASE = ("runtime.dtype=float32", "tokenizer.vocab_size=2048", "train.batch_size=8")
LOSSES = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "orpo": 0.1}  # and beta
LONGEST_PROMPT, LONGEST_ANSWER = 300, 300  # characters
SEED = 1


def pairs(text: str, count: int) -> list[dict[str, str]]:
    """Made from the text, cut at spaces so that tokens of prompt and answer do not run together."""
    draw = random.Random(SEED)
    spaces = [place for place, character in enumerate(text) if character == " "]

    def passage(start: int, longest: int) -> tuple[int, int]:
        end = start + draw.randint(longest // 6, longest)
        return start, next(place for place in range(end, len(text)) if text[place] == " ")

    made = []
    for _ in range(count):
        start, cut = passage(draw.choice(spaces[: len(spaces) * 9 // 10]) + 1, LONGEST_PROMPT)
        chosen = passage(cut, LONGEST_ANSWER)
        rejected = passage(draw.choice(spaces[: len(spaces) * 9 // 10]), LONGEST_ANSWER)
        answers = {"chosen": text[slice(*chosen)], "rejected": text[slice(*rejected)]}
        made.append({"prompt": text[start:cut], **answers})
    return made


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ours(directory: Path, loss: str, given: argparse.Namespace) -> dict[str, object]:
    run = f"{loss}-run"
    settings = (
        f"run_dir={run}", "base=base", "task=prefer", "data.train=[pairs.jsonl]", "data.validation_fraction=0",
        f"prefer.loss={loss}", "prefer.answers=0", "optim.weight_decay=0", f"optim.learning_rate={given.rate}",
        f"train.batch_size={given.batch}", "train.epochs=1", "train.log_every_steps=1", "runtime.dtype=float32",
        f"runtime.seed={SEED}",
    )  # fmt: skip
    (directory / "prefer.yaml").write_text("", encoding="utf-8")
    command = harness.gptcli("finetune", "prefer.yaml", "--force", "-q", *(f"-s{setting}" for setting in settings))
    done = harness.run(command, cwd=directory)
    lines = (directory / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    return {
        "losses": [record["loss_nats"] for record in steps],
        "step_seconds": [record["step_seconds"] for record in steps],
        "seconds": done.seconds,
        "peak_memory_bytes": done.peak_bytes,
    }


def theirs(directory: Path, loss: str, given: argparse.Namespace) -> dict[str, object]:
    options = ("--loss", loss, "--beta", str(LOSSES[loss]), "--rate", str(given.rate), "--batch", str(given.batch))
    command = [given.peer_python, harness.BENCH / "prefer_trl.py", "hf", "in-order.jsonl", "trl", *options]
    done = harness.run(command, cwd=directory)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": done.seconds, "peak_memory_bytes": done.peak_bytes}


def prepare(directory: Path, text: Path, given: argparse.Namespace) -> None:
    """Make the base, its export, and the pairs, once as they are and once in the order in which gptcli takes them."""
    (directory / "base.yaml").write_text(f"run_dir: base\ndata:\n  train: [{text}]\n", encoding="utf-8")
    settings = [*MODEL, *BASE, f"model.preset={given.preset}", f"train.steps={given.base_steps}", *given.overrides]
    where = {"cwd": directory, "XDG_CACHE_HOME": str(directory / "cache")}
    harness.run(harness.gptcli("pretrain", "base.yaml", "-q", *(f"-s{setting}" for setting in settings)), **where)
    harness.run(harness.gptcli("export", "base", "--to", "hf", "-o", "hf"), cwd=directory)
    rows = pairs(text.read_text(encoding="utf-8"), given.steps * given.batch)
    write_rows(directory / "pairs.jsonl", rows)
    order = permute(np.arange(len(rows), dtype=np.uint64), len(rows), derived_seed(SEED, "order", 0))
    write_rows(directory / "in-order.jsonl", [rows[int(number)] for number in order])


def compare(directory: Path, loss: str, given: argparse.Namespace) -> dict[str, object]:
    rounds = [(ours(directory, loss, given), theirs(directory, loss, given)) for _ in range(given.rounds)]
    differences = [abs(a - b) for one, other in rounds for a, b in zip(one["losses"], other["losses"], strict=True)]
    found: dict[str, object] = {"loss": loss, "steps": len(rounds[0][0]["losses"]), "difference": max(differences)}
    found["first_and_last"] = [(side["losses"][0], side["losses"][-1]) for side in rounds[0]]
    for name, side in (("gptcli", 0), ("trl", 1)):
        found[name] = {
            "step_seconds": harness.spread(statistics.median(both[side]["step_seconds"]) for both in rounds),
            "seconds": harness.spread(both[side]["seconds"] for both in rounds),
            "peak_memory_bytes": harness.spread(both[side]["peak_memory_bytes"] for both in rounds),
        }
    for key in ("step_seconds", "seconds"):
        of_each = ([statistics.median(side[key]) if key == "step_seconds" else side[key] for side in both]
                   for both in rounds)  # fmt: skip
        found[f"times_faster_{key}"] = harness.spread(their / our for our, their in of_each)
    return found


def show(found: dict) -> None:
    print(f"{found['loss']}: {found['steps']} steps, losses differ by at most {found['difference']:.1e}", end="; ")
    print("first and last", *(f"{first:.4f} {last:.4f}" for first, last in found["first_and_last"]))
    for name in ("gptcli", "trl"):
        side = found[name]
        print(
            f"  {name:8} a step {harness.show(side['step_seconds'], '.3f')} s, the process "
            f"{harness.show(side['seconds'], '.1f')} s, {harness.show(side['peak_memory_bytes'], '.2f', 1e-9)} GB"
        )
    steps, whole = (harness.show(found[f"times_faster_{key}"], ".2f") for key in ("step_seconds", "seconds"))
    print(f"  trl / gptcli: a step {steps}, the process {whole}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has trl")
    parser.add_argument("--losses", default="dpo,ipo,simpo,orpo", help="separated by commas")
    parser.add_argument("--preset", default="llama", help="of the model: llama or gpt2")
    parser.add_argument("--base-steps", type=int, default=100, help="of pretraining")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pairs in a step")
    parser.add_argument("--rate", type=float, default=3e-4, help="peak learning rate")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("-s", "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    harness.warn_of_load()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(directory, given.text.resolve(), given)
        found = []
        for loss in given.losses.split(","):
            found.append(compare(directory, loss, given))
            if not given.json:
                show(found[-1])
    if given.json:
        print(json.dumps(found, indent=2))
    return int(any(one["difference"] > given.tolerance for one in found))


if __name__ == "__main__":
    sys.exit(main())
