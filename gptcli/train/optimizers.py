"""All the optimizers of a run as one.

`modern`: Muon on the matrices inside the blocks, AdamW on the embedding, the head and all vectors. `classic`: AdamW on
everything, decay on matrices only (Brown et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.config.train import OptimConfig
from gptcli.model.gpt import GPT
from gptcli.train.adamw import AdamW
from gptcli.train.muon import Muon, muon_tiles
from gptcli.train.optimizer_base import Optimizer
from gptcli.train.schedule import learning_rate_factor, muon_momentum

BIGRAM_RATE = 0.1  # of the embedding's, for the table of pairs, whose rows are seen less often


class Optimizers:
    """All optimizers of a run: their rates, steps and gradients are set together, and their state is held by name."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        *,
        matrices: Mapping[str, tuple[int, int]],
        step_flops: float,
        dtype: torch.dtype,
        shapes: Mapping[str, torch.Size] | None = None,
        make_muon: Callable[..., Muon] = Muon,
    ) -> None:
        """Sort the trainable weights into groups, each with its optimizer, learning rate and weight decay.

        `parameters` and `matrices` go by the names of model.GPT, which gives the shapes of the latter (matrix_shapes);
        `step_flops` are those of its forward and backward pass in a step; `dtype` is that of Muon's products.
        `shapes` are those of the weights, where the parameters are parts of them.
        """
        named = {name: weight for name, weight in parameters if weight.requires_grad}
        self.names = {weight: name for name, weight in named.items()}
        inner = [name for name in named if name in matrices]
        muon = inner if config.name == "muon" else []
        embeddings = [name for name in named if name.split(".")[-2].endswith("embedding") and name not in muon]
        decayed = [name for name in (*inner, "head.weight") if name in named and name not in muon]
        pairs = [name for name in named if name == "bigrams.table"]
        plain = [name for name in named if name not in {*muon, *embeddings, *decayed, *pairs}]
        rate, shared = config.learning_rate, {"betas": (config.beta1, config.beta2), "eps": config.eps}
        embedding_rate = config.embedding_learning_rate or rate
        adamw_groups = [
            {"params": [named[name] for name in names], "lr": group_rate, "weight_decay": decay}
            for names, group_rate, decay in (
                (embeddings, embedding_rate, 0.0),
                (pairs, BIGRAM_RATE * embedding_rate, config.bigram_weight_decay),
                (decayed, rate, config.weight_decay),
                (plain, rate, 0.0),
            )
        ]
        self.parts: list[Optimizer] = [AdamW({**group, **shared} for group in adamw_groups if group["params"])]
        if muon:
            weights = {name: named[name] for name in muon}
            tiles = muon_tiles(
                {name: (shapes or {}).get(name, weight.shape) for name, weight in weights.items()},
                matrices, step_flops=step_flops, max_overhead=config.muon_overhead, dtype=dtype,
            )  # fmt: skip
            self.parts.append(
                make_muon(
                    weights.values(),
                    tiles={weights[name]: tile for name, tile in tiles.items()},
                    lr=config.muon_learning_rate,
                    momentum=config.muon_momentum,
                    weight_decay=config.weight_decay,
                    cautious=config.cautious_decay,
                    normalized=config.normuon,
                    dtype=dtype,
                )
            )
        self.groups = [group for part in self.parts for group in part.param_groups]
        self.peaks = [group["lr"] for group in self.groups]
        self.peak = self.learning_rate = rate  # optim.learning_rate, and what it is now
        self.config = config

    def set_schedule(self, step: float, steps: int) -> float:
        """Set rates and momentum to those of a step, from 0, of a run of `steps`; return the rates' factor."""
        factor = learning_rate_factor(step, steps, self.config)
        self.set_factor(factor)
        for group in self.groups:
            if "momentum" in group:
                _set(group, "momentum", muon_momentum(step, steps, self.config))
        return factor

    def set_factor(self, factor: float) -> None:
        """Set every rate to its peak times `factor`."""
        self.learning_rate = self.peak * factor
        for group, peak in zip(self.groups, self.peaks, strict=True):
            _set(group, "lr", peak * factor)

    def use_tensor_rates(self) -> None:
        """Keep rates and momentum in tensors from now on, for steps that are recorded (device.cuda_graphs)."""
        for group in self.groups:
            for name in {"lr", "momentum"} & group.keys():
                group[name] = torch.tensor(group[name], device=group["params"][0].device)

    def pieces(self) -> list[Callable[[], None]]:
        """Return a step in pieces that can be done in any order, or at the same time."""
        return [piece for part in self.parts for piece in part.pieces()]

    def step(self) -> None:
        for piece in self.pieces():
            piece()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()

    def tensors(self, *, create: bool = False) -> dict[str, Tensor]:
        """Return the state as `KIND.PARAMETER` -> tensor, not copies. `create` makes it where no step was taken yet."""
        if create:
            for part in self.parts:
                part.create_state()
        return {
            f"{kind}.{self.names[weight]}": tensor
            for part in self.parts
            for weight in part.weights()
            for kind, tensor in part.state.get(weight, {}).items()
        }

    def state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of one weight, made where no step was taken yet."""
        (part,) = [part for part in self.parts if any(weight is other for other in part.weights())]
        return part.state_of(weight)

    def keep_state(self, weights: Iterable[nn.Parameter]) -> None:
        """Free the state of all other weights."""
        kept = set(weights)
        for part in self.parts:
            part.state = {weight: state for weight, state in part.state.items() if weight in kept}


def _set(group: dict[str, Any], name: str, number: float) -> None:
    """Give a setting of a group another value, in the tensor that holds it where there is one."""
    if isinstance(group[name], Tensor):
        group[name].fill_(number)
    else:
        group[name] = number


def make_optimizers(
    model: GPT,
    config: OptimConfig,
    *,
    step_tokens: int,
    dtype: torch.dtype,
    parameters: Iterable[tuple[str, nn.Parameter]] | None = None,
    make_muon: Callable[..., Muon] = Muon,
) -> Optimizers:
    """Return the optimizers of a model for steps of so many tokens; `dtype` is that of its activations.

    `parameters`: the parts of its weights that are updated here, by their names, default the weights themselves.
    """
    return Optimizers(
        model.named_parameters() if parameters is None else parameters,
        config,
        matrices=model.matrix_shapes(),
        step_flops=step_tokens * model.train_flops_per_token(model.config.context_length),
        dtype=dtype,
        shapes={name: weight.shape for name, weight in model.named_parameters()},
        make_muon=make_muon,
    )
