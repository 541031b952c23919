"""How fast text is written beside transformers, CTranslate2 and llama.cpp: GPT-2 124M with random weights, or a model
of a GGUF file.

Three parts, each of which can be run alone; every engine in a process of its own, in turn, `--rounds` times; medians:
    stream  one text: a prompt of 64 tokens, 128 new, top-k 50; tokens/s, the share of the speed at which this
            machine reads memory, measured in the same rounds, that the weights alone take, and resident memory
    mixed   `--prompts` prompts of 8 to 256 tokens, 64 new each: seconds for all; transformers pads on the left, and
            llama.cpp writes one after another
    cold    a process, from its start to 200 tokens, with a model of the size that `gptcli quickstart` trains: seconds
Peers that are not installed are left out: pip install transformers ctranslate2 llama-cpp-python gguf.

Run:
    python tests/bench/generation.py [--part stream] [--only "gptcli int8" ...] [--rounds 3] [--threads 2] [--json]
    python tests/bench/generation.py --models DIR      # keeps the models (2 GB) for the next time
    python tests/bench/generation.py --part stream --file SmolLM2-135M-Instruct.Q4_1.gguf --models DIR

Learnt, on two Zen 3 cores without bfloat16 hardware:
  - F.linear gives a row other bits alone than among others; oneDNN's packed product and FBGEMM's int8 do not.
  - int8 rows and weights (FBGEMM) read memory as fast as int4 weights with bfloat16 rows, and lose less.
  - Bags of an embedding (F.embedding_bag over blocks of columns, int8 or 16 bits) read weights for one row as fast as
    FBGEMM's products, and are slower from two rows on: two forms of every matrix would be the price.
  - Emulated bfloat16 is slow where rows are many: FBGEMM's float16 weights take a sixth of the time for a prompt.
  - On two Zen 5 cores a call of oneDNN's or FBGEMM's product for one row takes 10 microseconds beside the product, and
    every small operation after it 2 to 10, because weights have run through the caches. So fewer operations count, and
    what is around them: nn.Module's look for parts and hooks took 6 % of the time, and exceptions 2 % in bfloat16 and
    7 % in int8 (torch asks a dtype or packed weight for __torch_function__, finds none and raises).
  - Rough logits in int8 first, with error bounds, and exact ones of those that may be among the 50 likeliest: 1,700
    candidates with these weights, 1.1 ms a token more instead of less.
  - What the other tenants of a shared machine do to its memory decides whether bfloat16 weights are read at 40 or 60
    GB/s, for minutes; transformers, which is bound elsewhere, does not see it. Compare within one minute.
  - One fused operation (SDPA) for the attention of a decoding step saves nothing measurable in a whole step.
  - A KV cache that takes its memory when it is first touched costs 64 mixed prompts 10 to 30 % on two Zen 4 cores: keys
    lie a dimension after another, so that one token touches a whole row, by one thread, 2.4 to 9.8 s for 2.4 and 4.8 GB
    where torch.zeros takes 0.3 to 1.4; zeros for each row at its first use took 1.7 to 2.7 s of 2.4 GB.
  - SmolLM2-135M, 30 layers of 576, on two Zen 4 cores with memory of 19 to 22 GB/s, two rounds each: int8 59 tokens/s
    beside 105 of llama.cpp's Q8_0 (0.56 x); with norms and rotations of fewer operations where nothing is learnt,
    tried and not kept yet, 63 beside 85 (0.74 x). A token takes 16 ms, of which the blocks' products take 6, as fast as
    memory is read; the rest is some 60 small operations a layer, and two threads are no faster than one.
  - Its blocks with 4 bits in groups of 32 and rows in bfloat16 (_weight_int4pack_mm_for_cpu): 4.2 ms a token beside 7.3
    of Int8Linear, for which one stream would have 0.57 x of llama.cpp's Q4_0, at 7 % of error in each matrix; groups of
    64 take 5.4 ms, rows in float32 98 ms, and _dyn_quant_matmul_4bit, which has no kernel for x86, 173 ms.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import harness
from generation_models import make_imported, make_large, make_small, matrix_weights

PROMPT, NEW, TOP_K = 64, 128, 50
MIXED_NEW, SHORTEST, LONGEST = 64, 8, 256
COLD_NEW = 200
Prompts = list[list[int]]


def gptcli_engine(directory: Path, threads: int, device: str, prompts: Prompts, new: int, how: str) -> float:
    from gptcli.cli.commands.options import ask_for_huge_pages

    ask_for_huge_pages()  # as `gptcli generate` does, before torch is there
    from gptcli.api.generate import Writer
    from gptcli.config.generate import GenerateOptions
    from gptcli.generate.engine import Request

    dtype, quantize = ("float32", "int8") if how == "int8" else (how, None)
    slots = 1 if len(prompts) == 1 else None
    how_run = {"device": device, "dtype": dtype, "threads": threads, "quantize": quantize}
    writer = Writer(directory / "gptcli", batch_size=slots, **how_run)  # type: ignore[arg-type]
    options = GenerateOptions(max_tokens=new, top_k=TOP_K, temperature=1.0, stop_at_eos=False)
    list(writer.engine.run([Request([1, 2, 3], GenerateOptions(max_tokens=4, top_k=TOP_K))]))
    asked = [Request(prompt[1:], options, number) for number, prompt in enumerate(prompts)]  # one token begins each
    capacity = len(prompts[0]) + new if len(prompts) == 1 else None  # as `gptcli generate` has it
    start = time.perf_counter()
    assert sum(len(completion.ids) for completion in writer.engine.run(asked, capacity=capacity)) == len(prompts) * new
    return time.perf_counter() - start


def transformers_engine(
    directory: Path, threads: int, device: str, prompts: Prompts, new: int, dtype: str, batch: int
) -> float:
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = (
        transformers.AutoModelForCausalLM.from_pretrained(directory / "hf", dtype=getattr(torch, dtype))
        .eval()
        .to(device)
    )

    def write(some: Prompts, new: int) -> None:
        longest = max(map(len, some))
        padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in some], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in some], device=device)
        how = {"do_sample": True, "top_k": TOP_K, "pad_token_id": 0, "attention_mask": mask}
        out = model.generate(padded, max_new_tokens=new, min_new_tokens=new, **how)
        assert out.shape == (len(some), longest + new)

    write(prompts[:1], 4)
    ordered = sorted(prompts, key=len)  # least padding
    start = time.perf_counter()
    for first in range(0, len(ordered), batch):
        write(ordered[first : first + batch], new)
    return time.perf_counter() - start


def ctranslate2_engine(directory: Path, threads: int, device: str, prompts: Prompts, new: int, dtype: str) -> float:
    import ctranslate2

    generator = ctranslate2.Generator(str(directory / "ct2"), device, compute_type=dtype, intra_threads=threads)
    named = [[f"t{token}" for token in prompt] for prompt in prompts]
    how = {"sampling_topk": TOP_K, "include_prompt_in_result": False, "end_token": [], "max_batch_size": 16}
    generator.generate_batch(named[:1], max_length=4, min_length=4, **how)
    start = time.perf_counter()
    results = generator.generate_batch(named, max_length=new, min_length=new, **how)
    assert sum(len(result.sequences_ids[0]) for result in results) == len(prompts) * new
    return time.perf_counter() - start


def llama_engine(directory: Path, threads: int, prompts: Prompts, new: int, dtype: str) -> float:
    import llama_cpp

    model = llama_cpp.Llama(
        str(directory / f"gguf-{dtype}" / "model.gguf"),
        n_ctx=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    how = {"top_k": TOP_K, "top_p": 1.0, "min_p": 0.0, "temp": 1.0, "repeat_penalty": 1.0}

    def write(prompt: list[int], new: int) -> None:
        for number, _ in enumerate(model.generate(prompt, **how), 1):
            if number == new:
                return

    write([1, 2, 3], 4)
    start = time.perf_counter()
    for prompt in prompts:
        write(prompt, new)
    return time.perf_counter() - start


def memory_speed(threads: int, device: str) -> float:
    """Bytes a second."""
    import torch

    from gptcli.device.machine import read_bytes_per_second

    torch.set_num_threads(threads)
    return read_bytes_per_second(torch.device(device))


MEMORY = "memory"
STREAM = {  # how many bytes a weight takes
    "gptcli float32": 4.0,
    "transformers float32": 4.0,
    "ctranslate2 float32": 4.0,
    "gptcli bfloat16": 2.0,
    "transformers bfloat16": 2.0,
    "llama.cpp bfloat16": 2.0,
    "gptcli int8": 1.0,
    "ctranslate2 int8": 1.0,
    "llama.cpp q8_0": 34 / 32,
    "llama.cpp q4_0": 18 / 32,
}
MIXED = (
    "gptcli float32",
    "gptcli int8",
    "gptcli bfloat16",
    "transformers float32, batches of 8",
    "transformers float32, batches of 32",
    "transformers bfloat16, batches of 8",
    "transformers bfloat16, batches of 32",
    "ctranslate2 int8",
    "llama.cpp q8_0",
)
COLD = ("gptcli generate", "transformers pipeline")
PARTS = {"stream": [*STREAM, MEMORY], "mixed": list(MIXED), "cold": list(COLD)}
PIPELINE = """
import sys, transformers
pipe = transformers.pipeline("text-generation", model=sys.argv[1])
print(pipe("The", max_new_tokens=%d, min_new_tokens=%d, do_sample=True, top_k=%d)[0]["generated_text"])
"""


def seconds(name: str, directory: Path, threads: int, device: str, prompts: Prompts, new: int) -> float:
    """What one engine takes, in this process."""
    program, how = name.split(" ", 1)
    match program:
        case "gptcli":
            return gptcli_engine(directory, threads, device, prompts, new, how)
        case "transformers":
            dtype, _, batch = how.partition(", batches of ")
            return transformers_engine(directory, threads, device, prompts, new, dtype, int(batch or 1))
        case "ctranslate2":
            return ctranslate2_engine(directory, threads, device, prompts, new, how)
        case _:
            return llama_engine(directory, threads, prompts, new, how)


def one(part: str, name: str, directory: Path, threads: int, device: str, count: int) -> float:
    """The figure of one engine: tokens or bytes a second for `stream`, seconds for `mixed`."""
    if name == MEMORY:
        return memory_speed(threads, device)
    chance = random.Random(1)
    if part == "stream":
        return NEW / seconds(name, directory, threads, device, [[chance.randrange(5000) for _ in range(PROMPT)]], NEW)
    lengths = [chance.randint(SHORTEST, LONGEST) for _ in range(count)]
    prompts = [[chance.randrange(5000) for _ in range(length)] for length in lengths]
    return seconds(name, directory, threads, device, prompts, MIXED_NEW)


def cold(name: str, directory: Path) -> float:
    """Seconds of a whole process."""
    command: list[str | Path]
    if name == COLD[0]:
        command = harness.gptcli("generate", directory / "small", "The", "--max-tokens", str(COLD_NEW))
        command += ["--top-k", str(TOP_K), "--temperature", "1", "--no-stop-at-eos"]
    else:
        command = [sys.executable, "-c", PIPELINE % (COLD_NEW, COLD_NEW, TOP_K), directory / "small-hf"]
    return harness.run(command).seconds


def measure(given: argparse.Namespace, directory: Path, part: str) -> dict[str, dict[str, float]]:
    """Every engine of a part, in turn -> its figures."""
    found: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for _ in range(given.rounds):
        for name in PARTS[part]:
            if given.only and name not in (*given.only, MEMORY):
                continue
            if part == "cold":
                found.setdefault(name, []).append(cold(name, directory))
                continue
            command = [sys.executable, __file__, "--one", name, "--part", part, "--models", directory]
            command += ["--threads", str(given.threads), "--prompts", str(given.prompts), "--device", given.device]
            try:
                finished = harness.run(command)
            except SystemExit as error:
                harness.note(f"{name}: left out: {str(error).strip().splitlines()[-1]}")
                continue
            found.setdefault(name, []).append(float(finished.stdout.split()[-1]))
            memory[name] = max(memory.get(name, 0.0), finished.peak_bytes)
    return {name: {**harness.spread(figures), "bytes": memory.get(name, 0.0)} for name, figures in found.items()}


def show(part: str, result: dict[str, dict[str, float]], weights: int) -> None:
    """A line an engine: its figure, how many times as fast as each gptcli is, and for `stream` memory and roofline."""
    memory = result.pop(MEMORY, None)
    ours = [name for name in result if name.startswith("gptcli")]
    if memory:
        print(f"memory: {harness.show(memory, '.1f', 1e-9)} GB/s")
    for name, figure in result.items():
        line = f"{name:38}{harness.show(figure, '.1f' if part == 'stream' else '.2f'):28}"
        if memory:
            line += f"{figure['bytes'] / 1e9:5.2f} GB"
            line += f"{weights * STREAM[name] * figure['median'] / memory['median']:5.0%} of memory's speed"
        if name not in ours:
            ratios = {own: result[own]["median"] / figure["median"] for own in ours}
            line += "".join(
                f"  {own}: {ratio if part == 'stream' else 1 / ratio:.2f} x" for own, ratio in ratios.items()
            )
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), help="left out: all of them")
    parser.add_argument("--only", nargs="*", metavar="NAME", help=", ".join(dict.fromkeys([*STREAM, *MIXED, *COLD])))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="of gptcli, transformers and CTranslate2, for stream and mixed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", type=Path, help="a directory to keep the models in")
    parser.add_argument("--file", type=Path, help="a GGUF file, whose model is measured instead of a random one")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(one(given.part, given.one, given.models, given.threads, given.device, given.prompts))
        return
    parts = [given.part] if given.part else list(PARTS)
    with tempfile.TemporaryDirectory() as name:
        directory = given.models or Path(name)
        directory.mkdir(exist_ok=True)
        if parts != ["cold"] and not (directory / "gptcli").is_dir():
            make_imported(directory, given.file) if given.file else make_large(directory)
        if "cold" in parts and not (directory / "small").is_dir():
            make_small(directory)
        harness.warn_of_load()
        result = {part: measure(given, directory, part) for part in parts}
        weights = matrix_weights(directory / "gptcli") if "stream" in parts else 0
    if given.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for part, figures in result.items():
        unit = "tokens/s" if part == "stream" else "seconds"
        print(f"{part}, {unit}, threads {given.threads}, rounds {given.rounds}")
        show(part, figures, weights)


if __name__ == "__main__":
    main()
