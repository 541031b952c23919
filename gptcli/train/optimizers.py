"""All the optimizers of a run as one.

`modern`: Muon on the matrices inside the blocks, AdamW on the embedding, the head and all vectors. `classic`: AdamW on
everything, decay on matrices only (Brown et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from gptcli.config.train import OptimConfig
from gptcli.model.gpt import GPT
from gptcli.train.adamw import AdamW
from gptcli.train.muon import Muon, muon_tiles
from gptcli.train.optimizer_base import Optimizer


class Optimizers:
    """Sets the rates, steps and clears gradients of all optimizers of a run, and holds their state by name."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        config: OptimConfig,
        *,
        matrices: Mapping[str, tuple[int, int]],
        step_flops: float,
        dtype: torch.dtype,
    ) -> None:
        """Sort the trainable weights into groups, each with its optimizer, learning rate and weight decay.

        `parameters` and `matrices` go by the names of model.GPT, which gives the shapes of the latter (matrix_shapes);
        `step_flops` are those of its forward and backward pass in a step; `dtype` is that of Muon's products.
        """
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
        self.parts: list[Optimizer] = [AdamW({**group, **shared} for group in adamw_groups if group["params"])]
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

    def use_tensor_rates(self) -> None:
        """Keep the rates in tensors from now on, for steps that are recorded (device.cuda_graphs)."""
        for group in self.groups:
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)

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


def make_optimizers(model: GPT, config: OptimConfig, *, step_tokens: int, dtype: torch.dtype) -> Optimizers:
    """Return the optimizers of a model for steps of so many tokens; `dtype` is that of its activations."""
    return Optimizers(
        model.named_parameters(),
        config,
        matrices=model.matrix_shapes(),
        step_flops=step_tokens * model.train_flops_per_token(model.config.context_length),
        dtype=dtype,
    )
