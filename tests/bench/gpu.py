"""Everything that is promised on one GPU, measured by one command: what must be, what was seen, shown or missed.

    tests     the tests of tests/device/test_on_device.py on this card
    gpt2      GPT-2 124M, 1,024 tokens of context, bfloat16: share of the card's peak, beside nanoGPT compiled
    small     6 layers, 384 wide: beside nanoGPT compiled
    time      with --text: seconds to 2.72 bits per byte of it
    stream    one text of GPT-2 124M in bfloat16, and in int8: tokens/s
    mixed     256 prompts of 8 to 256 tokens beside transformers' batches
    memory    a step of 1.3 G parameters in 80 GB, beside what `gptcli plan` says

Each part runs another program of this directory, or the command, in processes of their own; one that fails is a line
of the table with its reason. The peak is that of dense bfloat16 products in the card's data sheet, by its name.

Run:
    python tests/bench/gpu.py [--text TEXT] [--part gpt2 stream ...] [--rounds 1] [--json]   # needs transformers
    python tests/bench/gpu.py --device cpu --part small stream    # whether the program works; no figures
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness

PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # FLOP/s, bfloat16
GPT2 = "--layers 12 --width 768 --heads 12 --context 1024 --batch 32 --vocab 50304".split()
SMALL = "--layers 6 --width 384 --heads 6 --context 256 --batch 64 --vocab 8192".split()
XL = "{preset: gpt3-1.3b, vocab_size: 50304, context_length: 1024}"
TESTS = harness.BENCH.parent / "device" / "test_on_device.py"


@dataclass(frozen=True)
class Line:
    """A promise, what must be, what was seen, and whether that is enough; None where nothing says so."""

    name: str
    must: str
    seen: str
    shown: bool | None


def found(*command: str | Path) -> dict[str, Any]:
    """Return what a program prints as JSON. RuntimeError, with the last line of stderr, where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if not done.stdout.strip():
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def card() -> tuple[str, float | None]:
    """Return the card's name, and the peak of its data sheet where it is known."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return name, next((peak for part, peak in PEAKS.items() if all(word in name for word in part.split())), None)


def tests(given: argparse.Namespace) -> Iterator[Line]:
    """Run the tests that need a card."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", TESTS, "--device", given.device],
        capture_output=True,
        text=True,
    )
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    yield Line("tests on the card", "all pass", last, done.returncode == 0 and "passed" in last)


def training(shape: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of training steps beside nanoGPT's."""
    sides = "gptcli,gptcli-compiled,nanogpt-compiled"
    how = [*shape, "--sides", sides, "--device", given.device, "--rounds", str(given.rounds), "--json"]
    sides_found: dict[str, Any] = found(*harness.program("pretrain_speed.py", *how))["sides"]
    return sides_found


def beside_nanogpt(name: str, must: float, sides: dict[str, Any]) -> Line:
    """Return the line of the faster of ours against the peer."""
    speed = {side: figures["tokens_per_second"]["median"] for side, figures in sides.items()}
    best = max((side for side in speed if side != "nanogpt-compiled"), key=speed.__getitem__)
    ratio = speed[best] / speed["nanogpt-compiled"]
    seen = f"{best} {speed[best]:,.0f} tokens/s beside {speed['nanogpt-compiled']:,.0f}: {ratio:.2f} x"
    return Line(name, f"{must:g} x nanoGPT compiled", seen, ratio >= must)


def gpt2(given: argparse.Namespace) -> Iterator[Line]:
    """Measure GPT-2 124M."""
    sides = training(GPT2, given)
    yield beside_nanogpt("training, GPT-2 124M", 1.2, sides)
    peak = card()[1]
    flops = max(sides[side]["flops_per_second"]["median"] for side in ("gptcli", "gptcli-compiled"))
    seen = f"{flops / peak:.1%}" if peak else f"{flops / 1e12:.1f} TFLOP/s; the peak of this card is not in the table"
    yield Line("the same, share of the peak (MFU)", "45 %, aim 50 %", seen, flops / peak >= 0.45 if peak else None)


def small(given: argparse.Namespace) -> Iterator[Line]:
    """Measure a small model."""
    yield beside_nanogpt("training, 6 layers of 384", 3.0, training(SMALL, given))


def time(given: argparse.Namespace) -> Iterator[Line]:
    """Measure the time to a loss."""
    if given.text is None:
        yield Line("seconds to 2.72 bits per byte", "seconds", "not measured: --text TEXT", None)
        return
    how = [given.text, "-s", f"runtime.device={given.device}", "--rounds", str(given.rounds), "--json"]
    ours = found(*harness.program("time_to_loss.py", *how))["sides"]["gptcli"]
    bits, seconds = ours["bits_per_byte"]["median"], ours["seconds"]["median"]
    yield Line("seconds to 2.72 bits per byte", "seconds", f"{bits:.3f} after {seconds:.1f} s", bits <= 2.72)


def generation(part: str, given: argparse.Namespace, *names: str) -> dict[str, float]:
    """Return the figures of the engines that are named; those that are not installed are left out."""
    how = ["--part", part, "--device", given.device, "--prompts", "256", "--rounds", str(given.rounds), "--json"]
    figures = found(*harness.program("generation.py", *how, "--models", given.models, "--only", *names))[part]
    return {name: figure["median"] for name, figure in figures.items()}


def stream(given: argparse.Namespace) -> Iterator[Line]:
    """Measure one stream."""
    speed = generation("stream", given, "gptcli bfloat16", "gptcli int8", "transformers bfloat16")
    ours = speed["gptcli bfloat16"]
    seen = "; ".join(f"{name} {figure:,.0f}" for name, figure in speed.items() if name != "memory")
    yield Line("one stream of GPT-2 124M, tokens/s", "2,000, aim 3,000", seen, ours >= 2000)


def mixed(given: argparse.Namespace) -> Iterator[Line]:
    """Measure many prompts."""
    peers = ("transformers bfloat16, batches of 32", "transformers bfloat16, batches of 8")
    seconds = generation("mixed", given, "gptcli bfloat16", "gptcli int8", *peers)
    ratio = min(seconds[name] for name in peers) / seconds["gptcli bfloat16"]
    seen = "; ".join(f"{name} {figure:.2f} s" for name, figure in seconds.items()) + f": {ratio:.2f} x"
    yield Line("256 mixed prompts", "5 x transformers", seen, ratio >= 5)


def memory(given: argparse.Namespace) -> Iterator[Line]:
    """Measure the memory of a large model's steps beside its plan."""
    with tempfile.TemporaryDirectory() as name:
        text, run = Path(name, "text.txt"), Path(name, "run.yaml")
        text.write_text("".join(f"line {number} of {number * number}\n" for number in range(20000)), encoding="utf-8")
        run.write_text(
            f"run_dir: {name}/run\ndata: {{train: [{text}], tokenizer: {{train: {{vocab_size: 512}}}}}}\n"
            f"model: {XL}\ntrain: {{steps: 3, batch_size: 8, micro_batch_size: 4}}\n"
            f"runtime: {{device: {given.device}, dtype: bfloat16}}\n",
            encoding="utf-8",
        )
        planned = found(*harness.gptcli("plan", run, "--json"))["memory_bytes"]["total"]
        measured = found(*harness.gptcli("bench", "train", run, "--json"))["memory_bytes"]
    off = planned / measured - 1
    seen = f"{measured / 1e9:.1f} GB, the plan says {planned / 1e9:.1f}: {off:+.1%}"
    yield Line(
        "memory of a step of 1.3 G parameters", "80 GB, plan within 10 %", seen, measured < 80e9 and abs(off) < 0.1
    )


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    part.__name__: part for part in (tests, gpt2, small, time, stream, mixed, memory)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="of `time`")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        given.models = Path(name)
        for part in given.part:
            harness.note(part)
            try:
                lines += PARTS[part](given)
            except (RuntimeError, KeyError, OSError) as error:
                lines.append(Line(part, "", f"failed: {error}", False))
    if given.json:
        json.dump({"card": card()[0], "lines": [asdict(line) for line in lines]}, sys.stdout, indent=2)
        print()
        return
    print(card()[0])
    for line in lines:
        state = {True: "shown", False: "missed", None: "not judged"}[line.shown]
        print(f"{line.name:40}{line.must:26}{state:12}{line.seen}")


if __name__ == "__main__":
    main()
