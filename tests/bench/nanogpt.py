"""The peer: nanoGPT's model, training step and CPU recipe (github.com/karpathy/nanoGPT), rebuilt by its rules.

A GPT-2 with LayerNorm before each sub-layer, learned positions, exact GELU, a head tied to the embedding and biases
only on request; float32 on a CPU; AdamW with decay 0.1 on everything of two dimensions, gradients clipped at norm 1,
linear warm-up and cosine decay; batches from random offsets. It uses nothing of gptcli. What nanoGPT does and this
does not: it maps its data file anew for each batch, computes dropout of 0 and prints a line each step, so that the
peer is not slower than the original.

Run:
    python tests/bench/nanogpt.py train TEXT --out DIR       # the README's recipe for a CPU; DIR/ckpt.pt at the end
    python tests/bench/nanogpt.py evaluate DIR/ckpt.pt TEXT  # nats of every validation character
    python tests/bench/nanogpt.py check CHECKOUT             # this against a checkout of the original

Learnt:
  - From one seed this and the original give the same losses, digit for digit: 8 steps of 6 layers, 384 wide (`check`),
    and the recipe's evaluations at steps 0 and 250 (validation 4.1649 and 2.4447 nats on Shakespeare).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """T context, B batch, V vocabulary."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64
    batch: int = 12
    vocab: int = 65
    bias: bool = False


@dataclass(frozen=True)
class Recipe:
    """The README's settings for a CPU."""

    steps: int = 2000
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    eval_every: int = 250
    eval_batches: int = 20


# --------------------------------------------------------------------------------------------------------- the model


class Norm(nn.Module):
    """LayerNorm, with a bias on request."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, 1e-5)


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the stream that it adds to."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, bias = shape.width, shape.bias
        self.heads = shape.heads
        self.norm_1 = Norm(width, bias)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.attention_out = nn.Linear(width, width, bias=bias)
        self.norm_2 = Norm(width, bias)
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.down = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        parts = self.qkv(self.norm_1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class NanoGPT(nn.Module):
    """Ids (B, T) -> logits (B, T, V). Modules are made, and weights drawn, in nanoGPT's order: the same seed gives the
    same weights."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.width)
        self.positions = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width, shape.bias)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        self.tokens.weight = self.head.weight
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for projection in (block.attention_out, block.down):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * shape.layers))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean nats of the targets (B, T)."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())


def make_optimizer(model: nn.Module, recipe: Recipe, *, fused: bool = False) -> torch.optim.AdamW:
    """AdamW as PyTorch chooses it on a CPU (a loop over tensors); nanoGPT asks for the fused one on CUDA only."""
    weights = list(model.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=fused)


def train_step(
    model: NanoGPT,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    *,
    clip_norm: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> float:
    """One update; -> the loss. `dtype` bfloat16 is autocast, which nanoGPT itself has on CUDA only."""
    device = model.tokens.weight.device
    autocast = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
    ids, targets = (part.to(device) for part in batch)
    with autocast:
        loss = model.loss(ids, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to the least rate at the last step."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / (recipe.warmup_steps + 1)
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * done))
    return recipe.min_learning_rate + share * (recipe.learning_rate - recipe.min_learning_rate)


def random_batch(ids: np.ndarray, shape: Shape) -> tuple[Tensor, Tensor]:
    """Windows at random offsets of one array, and the same one further on."""
    starts = torch.randint(len(ids) - shape.context, (shape.batch,)).tolist()
    inputs, targets = (
        torch.stack([torch.from_numpy(ids[start + ahead :][: shape.context].astype(np.int64)) for start in starts])
        for ahead in (0, 1)
    )
    return inputs, targets


# ------------------------------------------------------------------------------------------------------- the recipe


def split_characters(text: str) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """The vocabulary of a text, and the ids of its first 90 % and its last 10 %."""
    vocabulary = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = np.array([vocabulary[character] for character in text], dtype=np.uint16)
    cut = int(len(ids) * 0.9)
    return vocabulary, ids[:cut], ids[cut:]


@torch.no_grad()
def estimated_loss(model: NanoGPT, ids: np.ndarray, shape: Shape, batches: int) -> float:
    """Mean loss of some random batches: nanoGPT's measure, noisy by a hundredth of a nat or two."""
    return float(torch.tensor([model.loss(*random_batch(ids, shape)).item() for _ in range(batches)]).mean())


def train(text_file: Path, out: Path, recipe: Recipe, *, seed: int, stop_after: int | None = None) -> dict[str, object]:
    """The whole recipe; the checkpoint with the least validation loss lies in `out`."""
    vocabulary, training, validation = split_characters(text_file.read_text(encoding="utf-8"))
    shape = Shape(vocab=len(vocabulary))
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = NanoGPT(shape)
    optimizer = make_optimizer(model, recipe)
    history: dict[int, float] = {}
    batch = random_batch(training, shape)
    for step in range(recipe.steps + 1):  # nanoGPT takes one step more than it says, after its last evaluation
        rate = learning_rate(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step % recipe.eval_every == 0:
            model.eval()
            losses = [estimated_loss(model, ids, shape, recipe.eval_batches) for ids in (training, validation)]
            model.train()
            print(
                f"step {step}: training {losses[0]:.4f}, validation {losses[1]:.4f} nats", file=sys.stderr, flush=True
            )
            if step > 0 and losses[1] < min(history.values()):
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "shape": asdict(shape), "step": step}, out / "ckpt.pt")
            history[step] = losses[1]
            if step == stop_after:
                break
        train_step(model, optimizer, batch, clip_norm=recipe.clip_norm)
        batch = random_batch(training, shape)
    return {"validation_nats": history[max(history)], "history": history, "seed": seed}


@torch.no_grad()
def evaluate(checkpoint: Path, text_file: Path) -> dict[str, float]:
    """Every validation character once, in windows that overlap by half, as `gptcli evaluate` scores text."""
    saved = torch.load(checkpoint, weights_only=True)
    shape = Shape(**saved["shape"])
    model = NanoGPT(shape)
    model.load_state_dict(saved["model"])
    _, training, validation = split_characters(text_file.read_text(encoding="utf-8"))
    count, T, stride = len(validation), shape.context, shape.context // 2
    starts = list(range(0, max(count - T, 0) + stride, stride))
    ids = np.concatenate((training[-1:], validation)).astype(np.int64)
    ids = torch.from_numpy(np.pad(ids, (0, starts[-1] + T - count)))
    windows = ids.unfold(0, T + 1, stride)  # (windows, T + 1): the inputs, and one token on the targets
    losses = []
    for part in windows.split(256):
        logits = model(part[:, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none").view(-1, T))
    each = torch.cat(losses).double()
    each[1:, :stride] = 0  # a window's first half was the last of the one before
    each[-1, count - starts[-1] :] = 0  # padding
    nats = float(each.sum())
    return {"nats_per_character": nats / count, "bits_per_character": nats / count / math.log(2), "characters": count}


# ------------------------------------------------------------------------------------------- against the original


def check(checkout: Path) -> dict[str, float]:
    """Losses of the same steps from the same seed, and step times in turn, of this and of the original's model.py."""
    spec = importlib.util.spec_from_file_location("original", checkout / "model.py")
    original = importlib.util.module_from_spec(spec)
    sys.modules["original"] = original  # its dataclass looks itself up
    spec.loader.exec_module(original)
    shape = Shape(layers=6, width=384, heads=6, context=256, batch=8, vocab=8192)
    recipe = Recipe()
    torch.manual_seed(1)
    rebuilt = NanoGPT(shape)
    torch.manual_seed(1)
    with contextlib.redirect_stdout(sys.stderr):
        config = original.GPTConfig(
            block_size=shape.context,
            vocab_size=shape.vocab,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_embd=shape.width,
            bias=shape.bias,
        )
        theirs = original.GPT(config)
        their_optimizer = theirs.configure_optimizers(recipe.weight_decay, recipe.learning_rate, recipe.betas, "cpu")
    optimizer = make_optimizer(rebuilt, recipe)
    ids = np.random.default_rng(1).integers(shape.vocab, size=100_000, dtype=np.uint16)
    apart, times = 0.0, ([], [])
    for _ in range(8):
        batch = random_batch(ids, shape)
        started = time.perf_counter()
        loss = train_step(rebuilt, optimizer, batch)
        between = time.perf_counter()
        _, their_loss = theirs(*batch)
        their_loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), recipe.clip_norm)
        their_optimizer.step()
        their_optimizer.zero_grad(set_to_none=True)
        apart = max(apart, abs(loss - their_loss.item()))
        times[0].append(between - started)
        times[1].append(time.perf_counter() - between)
    mine, other = (statistics.median(part[1:]) for part in times)
    return {"largest_difference_of_losses": apart, "step_seconds": mine, "original_step_seconds": other}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train")
    command.add_argument("text", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--seed", type=int, default=1337)
    command.add_argument("--stop-after", type=int, help="end after the evaluation at this step, for a look")
    command = commands.add_parser("evaluate")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("text", type=Path)
    command = commands.add_parser("check")
    command.add_argument("checkout", type=Path)
    given = parser.parse_args()
    match given.command:
        case "train":
            result = train(given.text, given.out, Recipe(), seed=given.seed, stop_after=given.stop_after)
        case "evaluate":
            result = evaluate(given.checkpoint, given.text)
        case _:
            result = check(given.checkout)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
