"""Optimizers and the learning-rate schedule.

`modern`: Muon (Jordan et al. 2024) on the matrices inside the blocks, AdamW (Loshchilov and Hutter 2019) on the
embedding, the head and all vectors. `classic`: AdamW on everything, decay on matrices only (Brown et al. 2020).
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.config.train import OptimConfig

# Amsel et al. 2025, "The Polar Express", degree-5 polynomials for singular values in [1e-3, 1], safety factor 1.02.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

CPU_BATCH_ELEMENTS = 1 << 20  # of matrices orthogonalised together: more needs memory and saves a CPU no time
BATCH_ELEMENTS = 1 << 26

MUON_ITERATIONS = 3  # 128 wide on Shakespeare: 2.266 bits per byte after 400 steps, 2.280 with 5, and cheaper


def learning_rate_factor(step: float, steps: int, config: OptimConfig) -> float:
    """Rate of step 0 <= step < steps relative to the peak: linear warm-up, plateau, decay over the last part."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    decay_steps = min(round(config.decay_fraction * steps), steps - config.warmup_steps)
    done = (step - (steps - decay_steps)) / decay_steps if decay_steps else 0.0  # share of the decay that is behind us
    if done <= 0 or config.schedule == "constant":
        return 1.0
    shape = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.final_learning_rate_fraction + (1 - config.final_learning_rate_fraction) * shape


def orthogonalize(matrices: Tensor, iterations: int = len(POLAR_EXPRESS)) -> Tensor:
    """The nearest semi-orthogonal matrices (N, R, C), to about 10 %: U V^T of each U S V^T.

    Computed in the dtype given. Costs a matrix iterations x (4 R C + 2 R^2) x R FLOPs for R <= C; in float32 with C at
    least 2 R (4 C + (8 x iterations - 6) R) x R^2, by _polynomial: for C = 4 R and 3 iterations 34 R^3 instead of 54.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]  # then products from the right, so that the result is contiguous
    gram = _gram(matrices, tall=tall)
    # The squared Frobenius norm is the Gram matrix's trace. To scale what is small spares two passes over what is long.
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float32).sqrt()
    scale = (1 / (norm * 1.02 + 1e-6))[:, None, None]
    gram = gram * scale.square()
    short, long = sorted(matrices.shape[-2:])
    if _by_polynomial(short, long, matrices.dtype):
        return _times(_polynomial(gram, iterations) * scale, matrices, tall=tall)
    x = matrices
    for number, coefficients in enumerate(POLAR_EXPRESS[:iterations]):
        factor = _factor(_gram(x, tall=tall) if number else gram.to(x.dtype), coefficients)
        x = _times(factor if number else factor.mul_(scale), x, tall=tall)
    return x


def _by_polynomial(short: int, long: int, dtype: torch.dtype) -> bool:
    """Where _polynomial costs less, and loses nothing that matters."""
    return long >= 2 * short and dtype.itemsize >= 4


def _gram(x: Tensor, *, tall: bool) -> Tensor:
    """The smaller of the two Gram matrices of each matrix."""
    return torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)


def _factor(gram: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    """a I + b gram + c gram^2."""
    a, b, c = coefficients
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor


def _times(square: Tensor, x: Tensor, *, tall: bool) -> Tensor:
    """The symmetric matrices times the short sides of x."""
    return torch.bmm(x, square) if tall else torch.bmm(square, x)


def _polynomial(gram: Tensor, iterations: int) -> Tensor:
    """P (N, R, R) of gram = X X^T for which P X is what the iterations make of X: they multiply X by polynomials of its
    Gram matrix, which can all be multiplied first. The small eigenvalues that this needs are lost in bfloat16."""
    product = gram
    for number, coefficients in enumerate(POLAR_EXPRESS[:iterations]):
        factor = _factor(gram, coefficients)
        product = torch.bmm(factor, product) if number else factor
        if number + 1 < iterations:
            gram = torch.bmm(torch.bmm(factor, gram), factor)
    return product


def _orthogonalize_flops(rows: int, columns: int, iterations: int, dtype: torch.dtype) -> float:
    """Of `orthogonalize` on one matrix."""
    short, long = sorted((rows, columns))
    if _by_polynomial(short, long, dtype):
        return (4 * long + (8 * iterations - 6) * short) * short**2
    return iterations * (4 * long + 2 * short) * short**2


MIN_TILE = 32  # on the short side: there is little left to save


def muon_tiles(
    weights: Mapping[str, Tensor],
    matrices: Mapping[str, tuple[int, int]],
    *,
    step_flops: float,
    max_overhead: float,
    dtype: torch.dtype,
) -> dict[str, tuple[int, int]]:
    """Shape of the parts, each orthogonalised apart, of every weight; `matrices` are those of which it is made.

    A head's query, key and value are one each: with them a 128-wide model on Shakespeare needs 10 % fewer steps than
    with one matrix for all heads. And what Muon costs does not depend on the batch: where it were more than
    `max_overhead` of the model's FLOPs in a step, short sides are cut in 2, 4, 8, ... (Khaled et al. 2025, "MuonBP").
    The update keeps its root mean square. In steps of 1,024 tokens of Shakespeare, 128 wide, halves lose 0.007 bits
    per byte after 150 steps and save 9 % of their time, which is worth 0.02; 256 wide they lose 0.008.
    """
    limit = max((min(matrices[name]) for name in weights), default=0)
    while True:
        tiles = {name: _tile(matrices[name], limit) for name in weights}
        cost = 0.0
        for name, tile in tiles.items():
            count = weights[name].numel() / math.prod(tile)
            cost += count * _orthogonalize_flops(*tile, MUON_ITERATIONS, dtype)
        if cost <= max_overhead * step_flops or limit < 2 * MIN_TILE:
            return tiles
        limit = math.ceil(limit / 2)


def _tile(shape: tuple[int, int], limit: int) -> tuple[int, int]:
    """The shape with its short side cut into equal parts of at most `limit`."""
    rows, columns = shape
    short = min(shape)
    part = math.ceil(short / math.ceil(short / limit))
    return (part, columns) if rows <= columns else (rows, part)


def batch_elements(*, on_cpu: bool) -> int:
    """Elements of a batch of matrices that Muon orthogonalises together, if one has not more."""
    return CPU_BATCH_ELEMENTS if on_cpu else BATCH_ELEMENTS


class _Optimizer:
    """Groups of weights with their settings, and a state for each weight, as torch.optim.Optimizer has them: making one
    of that class imports torch._dynamo, which takes a second or two at the start of every run."""

    KINDS: tuple[str, ...] = ()  # of state that has the shape of the weight

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.param_groups = list(groups)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """The state of a weight, zero where there was no step yet."""
        if weight not in self.state:
            self.state[weight] = {kind: torch.zeros_like(weight) for kind in self.KINDS}
        return self.state[weight]

    def create_state(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                self.state_of(weight)

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None

    def pieces(self) -> list[Callable[[], None]]:
        """A step in pieces, each for other weights of those that have a gradient."""
        raise NotImplementedError

    def step(self) -> None:
        """Update every weight that has a gradient."""
        for piece in self.pieces():
            piece()


class AdamW(_Optimizer):
    """Loshchilov and Hutter 2019, by the fused kernel of torch.optim.AdamW."""

    KINDS = ("exp_avg", "exp_avg_sq")

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        state = super().state_of(weight)
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        return state

    def pieces(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for group in self.param_groups:
            weights: list[nn.Parameter] = [weight for weight in group["params"] if weight.grad is not None]
            found += [functools.partial(self._apply, weights[part], group) for part in batches(weights)]
        return found

    @torch.no_grad()
    def _apply(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state_of(weight) for weight in weights]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [*weights],
            [weight.grad for weight in weights if weight.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


class Muon(_Optimizer):
    """Momentum whose update is orthogonalised, over all matrices of one shape at once. A step uses up the gradients.

    `tiles` is the shape of the matrices that a weight is made of, of muon_tiles; a weight it lacks is one matrix.
    """

    KINDS = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        tiles: Mapping[nn.Parameter, tuple[int, int]],
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        group = {"params": list(parameters), "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([group])
        self.tiles, self.dtype = tiles, dtype

    def pieces(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for group in self.param_groups:
            # Matrices of one shape and scale (N, R, C), with their gradients and averages.
            alike: dict[tuple[torch.Size, float], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                tile = self.tiles.get(weight, weight.shape)
                scale = max(1, tile[0] / weight.shape[1]) ** 0.5
                parts = (
                    _split(tensor.detach(), tile)
                    for tensor in (weight, weight.grad, self.state_of(weight)["momentum_buffer"])
                )
                for target, gradient, average in zip(*parts, strict=True):
                    alike[target.shape[1:], scale].append((target, gradient, average))
            for (_, scale), triples in alike.items():
                for part in batches([target for target, _, _ in triples]):
                    found.append(functools.partial(self._apply, triples[part], scale, group))
        return found

    @torch.no_grad()
    def _apply(self, triples: list[tuple[Tensor, Tensor, Tensor]], scale: float, group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        targets, gradients, averages = (list(tensors) for tensors in zip(*triples, strict=True))
        counts = [len(target) for target in targets]
        changes = targets[0].new_empty(sum(counts), *targets[0].shape[1:], dtype=self.dtype)
        for gradient, average, change in zip(gradients, averages, torch.split(changes, counts), strict=True):
            average.lerp_(gradient, 1 - group["momentum"])
            change.copy_(gradient.lerp_(average, group["momentum"]))  # Nesterov
        changes = orthogonalize(changes, MUON_ITERATIONS).float()
        rate = group["lr"]
        if group["weight_decay"]:
            torch._foreach_mul_(targets, 1 - rate * group["weight_decay"])
        if isinstance(rate, Tensor):
            changes.mul_(rate)
            rate = 1.0
        torch._foreach_add_(targets, list(torch.split(changes, counts)), alpha=-rate * scale)


def _split(weight: Tensor, tile: tuple[int, ...]) -> Iterator[Tensor]:
    """The matrices of a weight (R, C) as views (N, *tile) of at most a batch, and of what is left at the ends."""
    most = max(1, batch_elements(on_cpu=weight.device.type == "cpu") // math.prod(tile))
    for columns in torch.split(weight, tile[1], 1):
        whole = len(columns) // tile[0] * tile[0]
        if whole:
            yield from torch.split(columns[:whole].view(-1, tile[0], columns.shape[1]), most)
        if whole < len(columns):
            yield columns[None, whole:]


def batches(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Where to cut a list of tensors so that each part but the last has the elements of a batch."""
    first = elements = 0
    for number, tensor in enumerate(tensors, 1):
        elements += tensor.numel()
        if number == len(tensors) or elements >= batch_elements(on_cpu=tensor.device.type == "cpu"):
            yield slice(first, number)
            first, elements = number, 0


class Optimizers:
    """The optimizers of a run as one: set the rate, step, clear gradients, and give or take their state by name."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        *,
        matrices: Mapping[str, tuple[int, int]],
        step_flops: float,
        dtype: torch.dtype,
    ) -> None:
        """`parameters` and `matrices` by the names of model.GPT, which has the shapes of the latter (matrix_shapes);
        `step_flops` are those of its forward and backward pass in a step; `dtype` is that of Muon's products."""
        named = {name: weight for name, weight in parameters if weight.requires_grad}
        self.names = {weight: name for name, weight in named.items()}
        inner = [name for name in named if name in matrices]
        muon = inner if config.name == "muon" else []
        embeddings = [name for name in named if name.split(".")[-2].endswith("embedding") and name not in muon]
        decayed = [name for name in (*inner, "head.weight") if name in named and name not in muon]
        plain = [name for name in named if name not in {*muon, *embeddings, *decayed}]
        rate = config.learning_rate
        shared = {"betas": (config.beta1, config.beta2), "eps": config.eps}
        adamw_groups = [
            {
                "params": [named[name] for name in embeddings],
                "lr": config.embedding_learning_rate or rate,
                "weight_decay": 0.0,
            },
            {"params": [named[name] for name in decayed], "lr": rate, "weight_decay": config.weight_decay},
            {"params": [named[name] for name in plain], "lr": rate, "weight_decay": 0.0},
        ]
        self.parts: list[_Optimizer] = [AdamW({**group, **shared} for group in adamw_groups if group["params"])]
        if muon:
            weights = {name: named[name] for name in muon}
            tiles = muon_tiles(weights, matrices, step_flops=step_flops, max_overhead=config.muon_overhead, dtype=dtype)
            self.parts.append(
                Muon(
                    weights.values(),
                    tiles={weights[name]: tile for name, tile in tiles.items()},
                    lr=config.muon_learning_rate,
                    momentum=config.muon_momentum,
                    weight_decay=config.weight_decay,
                    dtype=dtype,
                )
            )
        self.groups = [group for part in self.parts for group in part.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.peak = self.learning_rate = rate  # optim.learning_rate, and what it is now

    def set_factor(self, factor: float) -> None:
        """Set every rate to its peak times `factor`."""
        self.learning_rate = self.peak * factor
        for group, peak in zip(self.groups, self.peaks, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor

    def fix(self) -> None:
        """Keep the rates in tensors from now on, for steps that are recorded (hardware.graphs)."""
        for group in self.groups:
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)

    def pieces(self) -> list[Callable[[], None]]:
        """A step in pieces that can be done in any order, or beside each other."""
        return [piece for part in self.parts for piece in part.pieces()]

    def step(self) -> None:
        for piece in self.pieces():
            piece()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def tensors(self, *, create: bool = False) -> dict[str, Tensor]:
        """The state as `KIND.PARAMETER` -> tensor, not copies. `create` makes it where no step was taken yet."""
        if create:
            for part in self.parts:
                part.create_state()
        return {
            f"{kind}.{self.names[weight]}": tensor
            for part in self.parts
            for weight, state in part.state.items()
            for kind, tensor in state.items()
        }
