"""How fast text is written beside transformers, CTranslate2 and llama.cpp: GPT-2 124M with random weights, one stream.

Prompt of 64 tokens, 128 new, top-k 50. Every engine in a process of its own, in turn, `--rounds` times; medians.
Peers that are not installed are left out: pip install transformers ctranslate2 llama-cpp-python.

Run:
    python tests/bench/generation.py [--rounds 3] [--threads N] [--batch 1] [--json] [--only NAME ...]

Learnt, on two Zen 3 cores without bfloat16 hardware:
  - F.linear gives a row other bits alone than among others; oneDNN's packed product and FBGEMM's int8 do not.
  - int8 rows and weights (FBGEMM) read memory as fast as int4 weights with bfloat16 rows, and lose less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

PROMPT, NEW, TOP_K, VOCABULARY = 64, 128, 50, 50257


def gptcli_engine(directory: Path, threads: int, batch: int, dtype: str, quantize: str | None) -> float:
    import random

    from gptcli.config import GenerateOptions
    from gptcli.engine import Request
    from gptcli.runs.generate import Writer

    writer = Writer(directory / "gptcli", batch_size=batch, dtype=dtype, threads=threads, quantize=quantize)
    chance = random.Random(1)
    options = GenerateOptions(max_tokens=NEW, top_k=TOP_K, temperature=1.0, stop_at_eos=False)
    warm = GenerateOptions(max_tokens=4, top_k=TOP_K)
    list(writer.engine.run([Request([1, 2, 3], warm)]))
    asked = [Request([chance.randrange(5000) for _ in range(PROMPT - 1)], options, n) for n in range(batch)]
    start = time.perf_counter()
    written = sum(len(completion.ids) for completion in writer.engine.run(asked))
    assert written == batch * NEW
    return written / (time.perf_counter() - start)


def transformers_engine(directory: Path, threads: int, batch: int, dtype: str) -> float:
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.GPT2LMHeadModel.from_pretrained(directory / "hf", dtype=getattr(torch, dtype)).eval()
    ids = torch.randint(5000, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    how = {"do_sample": True, "top_k": TOP_K, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    model.generate(ids, max_new_tokens=4, min_new_tokens=4, **how)
    start = time.perf_counter()
    out = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, **how)
    assert out.shape == (batch, PROMPT + NEW)
    return batch * NEW / (time.perf_counter() - start)


def ctranslate2_engine(directory: Path, threads: int, batch: int, dtype: str) -> float:
    import ctranslate2

    generator = ctranslate2.Generator(str(directory / "ct2"), compute_type=dtype, intra_threads=threads)
    prompts = [[f"t{(7 * n + place) % 5000}" for place in range(PROMPT)] for n in range(batch)]
    how = {"sampling_topk": TOP_K, "include_prompt_in_result": False, "end_token": []}
    generator.generate_batch(prompts, max_length=4, min_length=4, **how)
    start = time.perf_counter()
    results = generator.generate_batch(prompts, max_length=NEW, min_length=NEW, **how)
    assert sum(len(result.sequences_ids[0]) for result in results) == batch * NEW
    return batch * NEW / (time.perf_counter() - start)


ENGINES = {
    "gptcli float32": lambda *how: gptcli_engine(*how, "float32", None),
    "transformers float32": lambda *how: transformers_engine(*how, "float32"),
    "ctranslate2 float32": lambda *how: ctranslate2_engine(*how, "float32"),
    "gptcli bfloat16": lambda *how: gptcli_engine(*how, "bfloat16", None),
    "transformers bfloat16": lambda *how: transformers_engine(*how, "bfloat16"),
    "gptcli int8": lambda *how: gptcli_engine(*how, "float32", "int8"),
    "ctranslate2 int8": lambda *how: ctranslate2_engine(*how, "int8"),
}


def make_models(directory: Path) -> None:
    """The same random GPT-2 124M for every engine."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from gptcli import checkpoint
    from gptcli.config import ModelConfig
    from gptcli.data.tokenizer import Tokenizer as OwnTokenizer
    from gptcli.model import GPT

    torch.manual_seed(1)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(directory / "hf")
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*characters, *(f"t{n}" for n in range(50000))])}
    file = Tokenizer(models.BPE(vocabulary, []))
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    file.add_special_tokens(["<|endoftext|>"])
    model = GPT(ModelConfig.from_preset("gpt2", vocab_size=VOCABULARY))
    model.initialize(torch.Generator().manual_seed(1))
    (directory / "gptcli").mkdir()
    checkpoint.save_model(model, OwnTokenizer(file.to_str().encode()), directory / "gptcli", step=0)
    try:
        make_ctranslate2(directory)
    except ImportError:
        harness.note("ctranslate2 is not installed")


def make_ctranslate2(directory: Path) -> None:
    from ctranslate2.converters.transformers import TransformersConverter

    class Converter(TransformersConverter):
        """Needs no tokenizer: tokens are called t0, t1, ..."""

        def load_tokenizer(self, *_: object, **__: object) -> object:
            class Names:
                def get_vocab(self) -> dict[str, int]:
                    return {f"t{n}": n for n in range(VOCABULARY)}

                bos_token, eos_token, unk_token = "t50256", "t50256", "t50256"

            return Names()

    Converter(str(directory / "hf")).convert(str(directory / "ct2"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="*", choices=list(ENGINES))
    parser.add_argument("--models", type=Path, help="a directory to keep the models in")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(ENGINES[given.one](given.models, given.threads, given.batch))
        return
    with tempfile.TemporaryDirectory() as name:
        directory = given.models or Path(name)
        if not (directory / "gptcli" / "config.json").is_file():
            directory.mkdir(exist_ok=True)
            make_models(directory)
        harness.warn_of_load()
        speeds: dict[str, list[float]] = {}
        for _ in range(given.rounds):
            for engine in given.only or ENGINES:
                command = [sys.executable, __file__, "--one", engine, "--models", directory]
                command += ["--threads", str(given.threads), "--batch", str(given.batch)]
                found = subprocess.run(command, capture_output=True, text=True)
                if found.returncode:
                    harness.note(f"{engine}: left out: {found.stderr.strip().splitlines()[-1]}")
                else:
                    speeds.setdefault(engine, []).append(float(found.stdout.split()[-1]))
    result = {engine: harness.spread(found) for engine, found in speeds.items()}
    if given.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"tokens/s, batch {given.batch}, threads {given.threads}, rounds: {given.rounds}")
    for engine, found in result.items():
        print(f"{engine:24}{harness.show(found, '.1f')}")


if __name__ == "__main__":
    main()
