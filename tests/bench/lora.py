"""A LoRA step of a pretrained model beside PEFT with transformers: tokens/s and memory of the same rows.

    python tests/bench/lora.py SmolLM2-135M-Instruct.Q4_1.gguf [--rounds 3] [--only gptcli "PEFT bfloat16" ...]

Rows of 18 to 98 tokens, 16 a step, nearly all of them learnt, rank 8 on all matrices of the blocks, AdamW. gptcli runs
its command: int8 is lora.base_dtype, checkpointing runtime.activation_checkpointing. PEFT trains in weights of
bfloat16, in float32, and in float32 with autocast to bfloat16, as transformers' Trainer does with `bf16=True`; it pads,
and only real tokens count. Each in a process of its own, in turn; the median step without the first two, then medians
of the rounds. gptcli's last column is how many times as fast it is as the fastest of PEFT's.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import harness

RANK, ROWS, STEPS, WARM = 8, 16, 10, 2
SHORTEST, LONGEST = 16, 96
OURS = {
    "gptcli": (),
    "gptcli int8": ("lora.base_dtype=int8",),
    "gptcli checkpointing": ("runtime.activation_checkpointing=true",),
    "gptcli int8, checkpointing": ("lora.base_dtype=int8", "runtime.activation_checkpointing=true"),
    "gptcli float32": ("runtime.dtype=float32",),
}
THEIRS = ("PEFT bfloat16", "PEFT autocast", "PEFT float32")
WORDS = "the a of to in is it that was for on are with as be this have from or one had by word but not what all were we"


def write_rows(path: Path) -> None:
    """Write prompts and completions of common words, of any length between the two."""
    chance, words = random.Random(1), WORDS.split()
    with path.open("w") as file:
        for _ in range(ROWS * STEPS):
            completion = " ".join(chance.choices(words, k=chance.randint(SHORTEST, LONGEST)))
            file.write(json.dumps({"prompt": "It", "completion": f" {completion}"}) + "\n")


def ours(directory: Path, name: str, threads: int) -> tuple[float, int]:
    """Run `gptcli finetune` -> tokens/s of its median step, and its peak memory."""
    run = directory / "run"
    settings = (f"run_dir={run}", f"base={directory / 'base'}", f"runtime.threads={threads}", *OURS[name])
    command = harness.gptcli("finetune", directory / "run.yaml", "-q", "--force", *(f"-s{one}" for one in settings))
    finished = harness.run(command)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [record["tokens_per_second"] for record in records if record["kind"] == "train"]
    return statistics.median(found[WARM:]), finished.peak_bytes


def peft_step(directory: Path, how: str, threads: int) -> float:
    """Train with PEFT in this process -> tokens/s of the median step."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    dtype = torch.bfloat16 if how == "bfloat16" else torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory / "hf")
    base = transformers.AutoModelForCausalLM.from_pretrained(directory / "hf", dtype=dtype)
    model = peft.get_peft_model(base, peft.LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    given = [json.loads(line) for line in (directory / "rows.jsonl").read_text().splitlines()]
    texts = [row["prompt"] + row["completion"] for row in given]
    found = []
    for step in range(STEPS):
        rows = [tokenizer(text)["input_ids"] for text in texts[step * ROWS : (step + 1) * ROWS]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(int(mask.sum()) / (time.perf_counter() - start))
    return statistics.median(found[WARM:])


def measure(given: argparse.Namespace, directory: Path) -> dict[str, dict[str, float]]:
    """Run everything in turn -> tokens/s, with `bytes`."""
    speeds: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    for _ in range(given.rounds):
        for name in given.only or (*OURS, *THEIRS):
            if name in OURS:
                speed, peak = ours(directory, name, given.threads)
            else:
                command = harness.program("lora.py", given.file, "--one", name, "--models", directory)
                finished = harness.run([*command, "--threads", str(given.threads)])
                speed, peak = float(finished.stdout.split()[-1]), finished.peak_bytes
            harness.note(f"{name}: {speed:.0f} tokens/s")
            speeds.setdefault(name, []).append(speed)
            memory[name] = max(memory.get(name, 0), peak)
    return {name: {**harness.spread(found), "bytes": memory[name]} for name, found in speeds.items()}


def prepare(file: Path, directory: Path) -> None:
    """Write the base for both, the rows and the run file."""
    harness.run(harness.gptcli("import", file, "-o", directory / "base"))
    harness.run(harness.gptcli("export", directory / "base", "-o", directory / "hf", "--to", "hf"))
    write_rows(directory / "rows.jsonl")
    (directory / "run.yaml").write_text(
        "run_dir: run\nbase: base\ntask: instruct\n"
        f"data: {{train: [{directory / 'rows.jsonl'}], validation_fraction: 0}}\n"
        f"train: {{epochs: 1, batch_size: {ROWS}, log_every_steps: 1}}\nlora: {{rank: {RANK}, alpha: 16}}\n"
        "optim: {learning_rate: 1e-4, grad_clip_norm: 1.0}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="of a pretrained model, GGUF")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", metavar="NAME", help=", ".join((*OURS, *THEIRS)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", type=Path, help="a directory to keep the models in")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(peft_step(given.models, given.one.removeprefix("PEFT "), given.threads))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = given.models or Path(name)
        if not (directory / "run.yaml").is_file():
            directory.mkdir(exist_ok=True)
            prepare(given.file, directory)
        harness.warn_of_load()
        result = measure(given, directory)
    if given.json:
        print(json.dumps(result, indent=2))
        return
    best = max((found["median"] for name, found in result.items() if name in THEIRS), default=0.0)
    for name, found in result.items():
        line = f"{name:28}{harness.show(found):24}{found['bytes'] / 1e9:5.2f} GB"
        print(line + (f"  {found['median'] / best:.2f} x" if best and name in OURS else ""))


if __name__ == "__main__":
    main()
