r"""Speed of a training step: gptcli's own, nanoGPT's and Hugging Face's GPT-2, at one shape, on this machine's CPU.

A step is a batch of random tokens, forward, backward, clipping where the side clips, and the optimizer. Each side runs
in a fresh process, in turn with the others, once a round; a round's figure is that of its median step after two that
do not count. Printed are the machine's matmul peaks and for each side tokens/s, FLOP/s as
tokens x (6 x (12 L D^2 + V D) + 12 L D T), the share of the higher peak and the peak resident memory: medians of
the rounds (smallest..largest).

    gptcli       train.loop.train_step on the `modern` preset with default optimizer, bfloat16, as pretrain sets it up
    gptcli-compiled  the same with runtime.compile, as pretrain chooses it for a run of more than a few minutes
    nanogpt      nanogpt.py in float32, which is nanoGPT's only precision on a CPU
    huggingface  GPT2LMHeadModel under bfloat16 autocast, fused AdamW (its Trainer's), clipping, no dropout

and for other questions -float32 and -bfloat16 of these and nanogpt-compiled (under bfloat16 autocast, fused AdamW and
torch.compile, which nanoGPT has on CUDA). Compilation is not in the median step: 15 s the first time, then 4 s.

Run:
    python tests/bench/pretrain_speed.py [--json]
    python tests/bench/pretrain_speed.py --layers 12 --width 768 --heads 12 --context 512 --batch 2 --vocab 50304
    python tests/bench/pretrain_speed.py --device cuda --sides gptcli-compiled,nanogpt-compiled \
        --layers 12 --width 768 --heads 12 --context 1024 --batch 32 --vocab 50304
    python tests/bench/pretrain_speed.py --sides gptcli,gptcli-float32,nanogpt,nanogpt-bfloat16  # like with like

Learnt:
  - Figures drift by 10 to 20 % from run to run, and by a factor of four where another process has one of the cores:
    two threads wait for each other at every operation. Quote the ratios of one run on an idle machine; where there is
    none, --threads 1 is steadier.
  - The formula leaves the optimizer out. Muon on whole matrices adds 3 x (4 R C + 2 R^2) x R FLOPs each to a step
    whatever its batch: 24 % of the formula's at the default shape, 86 % for GPT-2 124M with 1,024 tokens a step. In
    parts (optim.muon_overhead) it adds 10 % at most. --optim classic has the peers' optimizer.
  - With bfloat16 (2 cores of Zen 5, default shape) matrix products are 64 % of a step and run at 88 % of a peak of
    1,008 GFLOP/s, and at the peak where a busy memory has brought that down to 880: their operands come from memory.
    The rest are passes over memory. Two micro-batches at a time hide some of those: 3 to 12 %. Compiled blocks make one
    of several: 6 to 8 % (32 % at 128 wide, 14 % at 256, 3 % to none at 768), if their graphs run without Python's lock
    (cpp_wrapper) and the second thread has the first one's heap; without these two nothing was left of it.
  - A thread of OpenMP that has nothing to do spins for some milliseconds and takes a core from the second thread: the
    update is shared by the two threads of Python, too, 1 to 2 %.
  - Nothing comes of weights in oneDNN's layout or cast once for both, of other micro-batches, chunks of logits, blocks
    of queries, batches of Muon's matrices, of huge pages, of a compiled loss, or of attention's gradients written where
    the product before it reads them (compiled, that is 8 % slower). Muon in smaller parts (optim.muon_overhead 0.05)
    saves 2 % of the time and loses 0.019 bits per byte after 240 steps of Shakespeare, 384 wide (2 seeds).
  - On 2 cores of Zen 3, which have no bfloat16, one thread multiplies 62 to 85 GFLOP/s at these shapes and nanoGPT
    already reaches 60: nobody can be 1.4 times as fast there. What gptcli gained where it was not matrix products: its
    RMSNorm forward and backward takes a quarter of F.rms_norm's time, and micro-batches of 1,024 tokens halve what is
    kept for the backward pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import harness

SIDES = (
    "gptcli",
    "gptcli-compiled",
    "nanogpt",
    "huggingface",
    "gptcli-float32",
    "nanogpt-bfloat16",
    "huggingface-float32",
    "nanogpt-compiled",
)
DEFAULT_SIDES = SIDES[:4]


@dataclass(frozen=True)
class Shape:
    """L, D, H, T, B and V."""

    layers: int = 6
    width: int = 384
    heads: int = 6
    context: int = 256
    batch: int = 8
    vocab: int = 8192

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.context

    @property
    def flops_per_token(self) -> float:
        L, D = self.layers, self.width
        return 6 * (12 * L * D**2 + self.vocab * D) + 12 * L * D * self.context


# ------------------------------------------------------------------------ the sides, each in a process of its own


def gptcli_step(
    shape: Shape, dtype: str, device: str, compiled: bool, threads: int | None, optim: str
) -> Callable[[], None]:
    import numpy as np
    import torch

    from gptcli.config.data import DataConfig
    from gptcli.config.model import ModelConfig
    from gptcli.config.train import OptimConfig, PretrainConfig, RuntimeConfig, TrainConfig
    from gptcli.data.batches import TokenBatches
    from gptcli.device.process import own_process
    from gptcli.device.runtime import keep_freed_memory, make_runtime
    from gptcli.train.initial import new_state
    from gptcli.train.loop import train_step
    from gptcli.train.micro_batches import micro_batch_rows

    class RandomTokens:
        """Stands in for a TokenArray."""

        ids = np.random.default_rng(1).integers(shape.vocab, size=1_000_000, dtype=np.uint16)

        def __len__(self) -> int:
            return len(self.ids)

        def rows(self, starts: np.ndarray, count: int) -> torch.Tensor:
            return torch.from_numpy(self.ids[starts[:, None] + np.arange(count)].astype(np.int64))

        def place(self, position: int) -> str:
            return f"random:{position}"

    config = PretrainConfig(
        run_dir="none",
        data=DataConfig(train=("none",)),
        model=ModelConfig(
            num_layers=shape.layers,
            hidden_size=shape.width,
            num_heads=shape.heads,
            context_length=shape.context,
            vocab_size=shape.vocab,
        ),
        optim=OptimConfig.from_preset(optim),
        train=TrainConfig(batch_size=shape.batch),
        runtime=RuntimeConfig(device=device, dtype=dtype, threads=threads, compile=compiled),
    )
    own_process()
    runtime = make_runtime(config.runtime)
    keep_freed_memory()
    state = new_state(config.model, config, runtime)
    if state.model.train_flops_per_token(shape.context) != shape.flops_per_token:
        raise SystemExit("the model has other products than the formula counts")
    state.model.train()
    batches = TokenBatches(
        RandomTokens(),
        context_length=shape.context,
        batch_size=shape.batch,
        micro_batch_size=micro_batch_rows(config.train, shape.context, on_cpu=runtime.device.type == "cpu"),
        first_token=0,
        seed=config.runtime.seed,
    )

    def step() -> None:
        state.optimizers.set_factor(1.0)
        train_step(state, batches(state.step), config.optim.grad_clip_norm, runtime, seed=config.runtime.seed)
        state.step += 1

    return step


def nanogpt_step(shape: Shape, dtype: str, device: str, compiled: bool, *_: object) -> Callable[[], None]:
    import nanogpt
    import numpy as np
    import torch

    peer_shape, recipe = nanogpt.Shape(**dataclasses.asdict(shape)), nanogpt.Recipe()
    torch.manual_seed(1)
    model = nanogpt.NanoGPT(peer_shape).to(device)
    optimizer = nanogpt.make_optimizer(model, recipe, fused=compiled)
    if compiled:
        model.loss = torch.compile(model.loss)
    ids = np.random.default_rng(1).integers(shape.vocab, size=1_000_000, dtype=np.uint16)

    def step() -> None:
        batch = nanogpt.random_batch(ids, peer_shape)
        nanogpt.train_step(model, optimizer, batch, clip_norm=recipe.clip_norm, dtype=getattr(torch, dtype))

    return step


def huggingface_step(shape: Shape, dtype: str, device: str, *_: object) -> Callable[[], None]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=shape.heads,
        n_positions=shape.context,
        vocab_size=shape.vocab,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)

    def step() -> None:
        ids = torch.randint(shape.vocab, (shape.batch, shape.context), device=device)
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def measure_step(
    side: str, shape: Shape, seconds: float, threads: int | None, optim: str, device: str
) -> dict[str, float]:
    """Median step time of one side in this process."""
    import torch

    from gptcli.device.machine import synchronize

    make, default = {
        "gptcli": (gptcli_step, "bfloat16"),
        "nanogpt": (nanogpt_step, "float32"),
        "huggingface": (huggingface_step, "bfloat16"),
    }[side.partition("-")[0]]
    variant = side.partition("-")[2]
    compiled = variant == "compiled"
    step = make(shape, "bfloat16" if compiled else variant or default, device, compiled, threads, optim)
    times: list[float] = []
    end = float("inf")
    while len(times) < 5 or time.perf_counter() < end:
        if len(times) == 2:
            end = time.perf_counter() + seconds
        started = time.perf_counter()
        step()
        synchronize(torch.device(device))
        times.append(time.perf_counter() - started)
    return {"step_seconds": statistics.median(times[2:]), "steps": len(times) - 2}


def measure_peak(device: str) -> dict[str, object]:
    """FLOP/s of square matrix products in this process."""
    import torch

    from gptcli.device.machine import matmul_peak

    found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    for dtype in (torch.bfloat16, torch.float32):
        found[str(dtype).removeprefix("torch.")] = matmul_peak(torch.device(device), dtype)
    return found


# ----------------------------------------------------------------------------------------------- the comparison


def compare(
    shape: Shape, sides: list[str], rounds: int, seconds: float, threads: int | None, optim: str, device: str
) -> dict[str, object]:
    options = [f"--{name}={size}" for name, size in dataclasses.asdict(shape).items()]
    options += [f"--optim={optim}", f"--device={device}"]
    environment = {}
    if threads:
        options.append(f"--threads={threads}")
        environment["OMP_NUM_THREADS"] = str(threads)
    peaks: list[dict[str, float]] = []
    steps: dict[str, list[float]] = {side: [] for side in sides}
    memory: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        command = harness.program("pretrain_speed.py", "--side=peak", f"--device={device}")
        peaks.append(json.loads(harness.run(command, **environment).stdout))
        for side in sides:
            command = harness.program("pretrain_speed.py", f"--side={side}", f"--seconds={seconds}", *options)
            done = harness.run(command, **environment)
            steps[side].append(json.loads(done.stdout)["step_seconds"])
            memory[side].append(done.peak_bytes)
            harness.note(f"round {number + 1}: {side} {shape.tokens / steps[side][-1]:,.0f} tokens/s")
    result: dict[str, object] = {
        "shape": dataclasses.asdict(shape),
        "flops_per_token": shape.flops_per_token,
        "rounds": rounds,
        "optim": optim,
        "torch": peaks[0]["torch"],
        "threads": peaks[0]["threads"],
        "peak_flops_per_second": {
            dtype: harness.spread(peak[dtype] for peak in peaks) for dtype in ("bfloat16", "float32")
        },
        "sides": {
            side: {
                "tokens_per_second": harness.spread(shape.tokens / each for each in steps[side]),
                "flops_per_second": harness.spread(shape.tokens * shape.flops_per_token / each for each in steps[side]),
                "peak_memory_bytes": harness.spread(memory[side]),
            }
            for side in sides
        },
    }
    # Of the rounds' ratios, so that what slows a whole round down falls out.
    result["ratios"] = {
        side: {
            "speed": harness.spread(theirs / ours for theirs, ours in zip(steps[side], steps[sides[0]], strict=True)),
            "memory": harness.spread(
                ours / theirs for theirs, ours in zip(memory[side], memory[sides[0]], strict=True)
            ),
        }
        for side in sides[1:]
    }
    return result


def report(result: dict, first: str) -> None:
    shape, peaks = result["shape"], result["peak_flops_per_second"]
    print(", ".join(f"{name} {size}" for name, size in shape.items()))
    print(f"torch {result['torch']}, {result['threads']} threads, optim {result['optim']}, rounds: {result['rounds']}")
    for dtype, peak in peaks.items():
        print(f"{dtype} matmul peak: {harness.show(peak, scale=1e-9)} GFLOP/s")
    rows = [("", "tokens/s", "GFLOP/s", "of the peak", "peak memory, GB")]
    for side, found in result["sides"].items():
        share = found["flops_per_second"]["median"] / max(peak["median"] for peak in peaks.values())
        rows.append(
            (
                side,
                harness.show(found["tokens_per_second"]),
                harness.show(found["flops_per_second"], scale=1e-9),
                f"{share:.0%}",
                harness.show(found["peak_memory_bytes"], ".2f", 1e-9),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for side, ratio in result["ratios"].items():
        speed, memory = harness.show(ratio["speed"], ".2f"), harness.show(ratio["memory"], ".2f")
        print(f"{first} / {side}: speed {speed}, memory {memory}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps, for each side and round; 3 at least")
    parser.add_argument("--sides", default=",".join(DEFAULT_SIDES), help=f"of {', '.join(SIDES)}; first: the measure")
    parser.add_argument("--threads", type=int, help="of every side; default: each side's own choice")
    parser.add_argument("--optim", choices=("modern", "classic"), default="modern", help="preset of the gptcli sides")
    parser.add_argument("--device", default="cpu", help="of every side; the peak resident memory is the host's")
    parser.add_argument("--side", choices=("peak", *SIDES), help="only this one, once, in this process")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    shape = Shape(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Shape)})
    if given.side:
        print(
            json.dumps(
                measure_peak(given.device)
                if given.side == "peak"
                else measure_step(given.side, shape, given.seconds, given.threads, given.optim, given.device)
            )
        )
        return
    sides = given.sides.split(",")
    if unknown := set(sides) - set(SIDES):
        parser.error(f"no side {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    harness.warn_of_load()
    result = compare(shape, sides, given.rounds, given.seconds, given.threads, given.optim, given.device)
    if given.json:
        json.dump(result, sys.stdout, indent=2)
        print()
    else:
        report(result, sides[0])


if __name__ == "__main__":
    main()
