"""Orthogonalisation, groups and state of the optimizers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gptcli.config.data import DataConfig
from gptcli.config.model import ModelConfig
from gptcli.config.train import OptimConfig, PretrainConfig
from gptcli.model.gpt import GPT
from gptcli.train.adamw import AdamW
from gptcli.train.loss import head_cross_entropy
from gptcli.train.muon import MIN_TILE, MUON_ITERATIONS, Muon, muon_tiles
from gptcli.train.optimizers import Optimizers, make_optimizers
from gptcli.train.orthogonalize import POLAR_EXPRESS, orthogonalize
from gptcli.train.resume import as_it_began
from gptcli.train.schedule import muon_momentum

torch.set_num_threads(1)  # shapes so small that threads only wait for each other

# ---------------------------------------------------------------------------------------------------------- Muon


def random_matrices(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nearest_orthogonal(matrices: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", [(32, 128), (128, 32), (16, 64), (96, 100)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonalised_singular_values_are_near_one(shape: tuple[int, int], scale: float) -> None:
    values = torch.linalg.svdvals(orthogonalize(scale * random_matrices(4, *shape)))
    assert values.min() > 0.8
    assert values.max() < 1.2


@pytest.mark.parametrize("shape", [(64, 64), (32, 128), (128, 32), (1, 16)])
def test_orthogonalised_is_near_the_svds_nearest_orthogonal_matrix(shape: tuple[int, int]) -> None:
    matrices = random_matrices(4, *shape)
    wanted = nearest_orthogonal(matrices)
    distance = (orthogonalize(matrices) - wanted).norm(dim=(1, 2)) / wanted.norm(dim=(1, 2))
    assert distance.max() < 0.2


@pytest.mark.parametrize("shape", [(16, 64), (128, 32), (1, 16), (24, 40)])
def test_orthogonalising_in_float32_is_the_written_iteration(shape: tuple[int, int]) -> None:
    matrices = random_matrices(4, *shape) @ torch.diag(torch.logspace(0, -3, shape[1]))  # of small singular values, too
    x = matrices.double() / (matrices.double().norm(dim=(1, 2), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS[:MUON_ITERATIONS]:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalize(matrices, MUON_ITERATIONS).double(), x, atol=1e-4, rtol=1e-3)


def test_a_matrix_is_orthogonalised_alike_alone_and_transposed() -> None:
    matrices = random_matrices(3, 24, 40)
    together = orthogonalize(matrices)
    torch.testing.assert_close(orthogonalize(matrices[1:2]), together[1:2])
    torch.testing.assert_close(orthogonalize(matrices.mT), together.mT)


def test_a_zero_gradient_orthogonalises_to_zero() -> None:
    assert (orthogonalize(torch.zeros(1, 8, 16)) == 0).all()


def muon(weights: list[nn.Parameter], tiles: dict[nn.Parameter, tuple[int, int]], **changes: Any) -> Muon:
    options = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "dtype": torch.float32} | changes
    return Muon(weights, tiles=tiles, **options)


@pytest.mark.parametrize(
    ("shape", "tile", "scale"), [((32, 16), (8, 16), 1), ((32, 16), (32, 8), 2**0.5), ((16, 32), (6, 32), 1)]
)
def test_muon_orthogonalises_the_matrices_of_a_weight_apart(
    shape: tuple[int, int], tile: tuple[int, int], scale: float
) -> None:
    weight = nn.Parameter(torch.zeros(shape))
    gradient = random_matrices(*shape)
    gradient[:4, :4] *= 100  # would drown the rest in one matrix
    weight.grad = gradient.clone()
    muon([weight], {weight: tile}).step()
    for rows, changes in zip(weight.detach().split(tile[0]), gradient.split(tile[0]), strict=True):
        for part, change in zip(rows.split(tile[1], 1), changes.split(tile[1], 1), strict=True):
            torch.testing.assert_close(part, -0.1 * scale * orthogonalize(change[None], MUON_ITERATIONS)[0])


def test_a_tall_matrix_moves_further() -> None:
    weight = nn.Parameter(torch.zeros(32, 16))
    weight.grad = random_matrices(32, 16)
    wanted = -0.1 * 2**0.5 * orthogonalize(weight.grad[None].clone(), MUON_ITERATIONS)[0]  # sqrt(32 rows / 16 columns)
    muon([weight], {}).step()
    torch.testing.assert_close(weight.detach(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@settings(deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 3]),
    head_size=st.sampled_from([8, 32, 50]),
    tokens=st.integers(8, 1 << 20),
)
def test_muon_takes_at_most_its_share_of_a_step_and_whole_matrices_where_it_can(
    dtype: torch.dtype, layers: int, heads: int, head_size: int, tokens: int
) -> None:
    shape = {"num_layers": layers, "num_heads": heads, "hidden_size": heads * head_size, "vocab_size": 100}
    with torch.device("meta"):
        model = GPT(ModelConfig(**shape))

    def overhead(tiles: dict[str, tuple[int, int]]) -> float:
        """FLOPs of the products that the orthogonalisation is made of, relative to the model's."""
        total = 0.0
        for name, tile in tiles.items():
            with FlopCounterMode(display=False) as counter:
                orthogonalize(torch.empty(1, *tile, dtype=dtype, device="meta"), MUON_ITERATIONS)
            total += counter.get_total_flops() * model.get_parameter(name).numel() / math.prod(tile)
        return total / (tokens * model.train_flops_per_token(model.config.context_length))

    whole = model.matrix_shapes()
    weights = {name: model.get_parameter(name).shape for name in whole}
    step_flops = tokens * model.train_flops_per_token(model.config.context_length)
    tiles = muon_tiles(weights, whole, step_flops=step_flops, max_overhead=0.1, dtype=dtype)
    if overhead(whole) <= 0.1:
        assert tiles == whole
    else:
        assert overhead(tiles) <= 0.1 or max(min(tile) for tile in tiles.values()) < 2 * MIN_TILE
    for tile, shape in zip(tiles.values(), whole.values(), strict=True):
        assert max(tile) == max(shape)  # only the short side is cut


def test_muon_decays_its_weights_apart_from_the_gradient() -> None:
    weight = nn.Parameter(torch.ones(8, 16))
    weight.grad = torch.zeros(8, 16)
    muon([weight], {}, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((8, 16), 1 - 0.1 * 0.5))


def test_muon_steps_along_the_nesterov_average() -> None:
    weight = nn.Parameter(torch.zeros(8, 16))
    optimizer = muon([weight], {}, momentum=0.9)
    first, second = random_matrices(2, 8, 16)
    average = 0.1 * first
    wanted = -0.1 * orthogonalize((0.1 * first + 0.9 * average)[None], MUON_ITERATIONS)[0]
    average = 0.9 * average + 0.1 * second
    wanted = wanted - 0.1 * orthogonalize((0.1 * second + 0.9 * average)[None], MUON_ITERATIONS)[0]
    for gradient in (first, second):
        weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), wanted)


# -------------------------------------------------------------------------------------------------------- groups


def make_model(**changes: Any) -> GPT:
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 16, "context_length": 8, "vocab_size": 20}
    model = GPT(ModelConfig.from_preset(changes.pop("preset", "modern"), **shape, **changes))
    model.initialize(torch.Generator().manual_seed(1))
    return model


def optimizers_of(model: GPT, preset: str, **changes: Any) -> Optimizers:
    config = OptimConfig.from_preset(preset, **changes)
    return make_optimizers(model, config, step_tokens=1 << 20, dtype=torch.float32)


def names_where(optimizers: Optimizers, holds: Callable[[dict[str, Any]], bool]) -> set[str]:
    return {optimizers.names[weight] for group in optimizers.groups if holds(group) for weight in group["params"]}


MATRICES = {f"blocks.0.{name}.weight" for name in ("attention.qkv", "attention.projection", "mlp.up", "mlp.projection")}


def test_classic_decays_matrices_and_no_vector_or_embedding() -> None:
    optimizers = optimizers_of(make_model(preset="gpt2"), "classic")
    assert names_where(optimizers, lambda group: group["weight_decay"] == 0.1) == MATRICES


def test_classic_decays_an_untied_head() -> None:
    optimizers = optimizers_of(make_model(preset="llama"), "classic")
    assert names_where(optimizers, lambda group: group["weight_decay"] == 0.1) == MATRICES | {"head.weight"}


def test_adamw_takes_the_steps_of_torchs_own() -> None:
    ours, theirs = (nn.Parameter(random_matrices(8, 12)) for _ in range(2))
    group = {"params": [ours], "lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    one = AdamW([group])
    other = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(5):
        for weight in (ours, theirs):
            weight.grad = random_matrices(8, 12, seed=step)
        one.step()
        other.step()
        assert torch.equal(ours, theirs)


def test_modern_gives_muon_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = make_model(norm_weight=True, bias=True)
    adamw, muon = optimizers_of(model, "modern").parts
    assert isinstance(adamw, AdamW)
    assert isinstance(muon, Muon)
    named = dict(model.named_parameters())
    assert {weight for group in muon.param_groups for weight in group["params"]} == {named[name] for name in MATRICES}
    rest = {weight for group in adamw.param_groups for weight in group["params"]}
    assert rest == {named[name] for name in set(named) - MATRICES}


@pytest.mark.parametrize("preset", ["modern", "classic"])
@pytest.mark.parametrize("model_preset", ["modern", "gpt2", "llama"])
def test_every_parameter_is_in_one_group(preset: str, model_preset: str) -> None:
    model = make_model(preset=model_preset)
    grouped = [weight for group in optimizers_of(model, preset).groups for weight in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_frozen_parameters_are_in_no_group() -> None:
    model = make_model()
    model.embedding.weight.requires_grad_(False)
    assert "embedding.weight" not in names_where(optimizers_of(model, "modern"), lambda _: True)


def test_embeddings_have_their_own_rate_and_the_factor_scales_all() -> None:
    rates = {"embedding_learning_rate": 0.1, "learning_rate": 3e-3, "muon_learning_rate": 0.02}
    optimizers = optimizers_of(make_model(), "modern", **rates)
    optimizers.set_factor(0.5)
    assert names_where(optimizers, lambda group: group["lr"] == 0.1 * 0.5) == {"embedding.weight"}
    assert names_where(optimizers, lambda group: group["lr"] == 3e-3 * 0.5) == {"head.weight"}
    assert names_where(optimizers, lambda group: group["lr"] == 0.02 * 0.5) == MATRICES


# -------------------------------------------------------------------------------------- NorMuon, decay, momentum


@pytest.mark.parametrize(("shape", "tile"), [((24, 8), (24, 4)), ((8, 24), (3, 24)), ((16, 16), (16, 16))], ids=str)
def test_normuon_divides_by_running_root_mean_squares_and_keeps_the_norm(
    shape: tuple[int, int], tile: tuple[int, int]
) -> None:
    """Beside the written formula in float64, matrix by matrix; (8, 24) has one left at the end that is smaller."""
    weight = nn.Parameter(torch.zeros(shape))
    muon = Muon(
        [weight], tiles={weight: tile}, lr=1.0, momentum=0.0, weight_decay=0.0, dtype=torch.float32, normalized=True
    )
    places = [
        (slice(top, min(top + tile[0], shape[0])), slice(left, left + tile[1]))
        for top in range(0, shape[0], tile[0])
        for left in range(0, shape[1], tile[1])
    ]
    tall = tile[0] >= tile[1]
    moments = [torch.zeros(()).double() for _ in places]
    wanted = torch.zeros(shape).double()
    for step in range(3):
        gradient = random_matrices(*shape, seed=step)
        for number, place in enumerate(places):
            update = orthogonalize(gradient[place][None].clone(), MUON_ITERATIONS)[0].double()
            squares = update.square().mean(1 if tall else 0, keepdim=True)
            moments[number] = 0.95 * moments[number] + 0.05 * squares
            evened = update / moments[number].sqrt()
            evened *= update.norm() / evened.norm()
            wanted[place] -= max(1, len(update) / shape[1]) ** 0.5 * evened if tile[0] == len(update) else (
                max(1, tile[0] / shape[1]) ** 0.5 * evened
            )  # fmt: skip
        weight.grad = gradient
        muon.step()
    torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-4, atol=1e-4)


def test_cautious_decay_takes_only_from_weights_that_the_update_makes_smaller() -> None:
    def stepped(weight_decay: float, *, cautious: bool) -> Tensor:
        weight = nn.Parameter(random_matrices(8, 8))
        muon = Muon(
            [weight], tiles={}, lr=0.1, momentum=0.0, weight_decay=weight_decay, dtype=torch.float32, cautious=cautious
        )
        weight.grad = random_matrices(8, 8, seed=2)
        muon.step()
        return weight.detach()

    before, plain = random_matrices(8, 8), stepped(0.0, cautious=True)
    smaller = (before - plain) * before > 0
    assert 0 < int(smaller.sum()) < 64
    torch.testing.assert_close(stepped(0.5, cautious=True), torch.where(smaller, plain - 0.05 * before, plain))
    torch.testing.assert_close(stepped(0.5, cautious=False), plain - 0.05 * before)


def test_momentum_rises_over_the_first_fifth_of_a_run() -> None:
    config = OptimConfig()
    assert [round(muon_momentum(step, 100, config), 4) for step in (0, 10, 20, 99)] == [0.85, 0.9, 0.95, 0.95]
    assert round(muon_momentum(150, 1_000_000, config), 4) == 0.9
    assert muon_momentum(0, 100, OptimConfig(muon_momentum_ramp=0.0)) == 0.95
    optimizers = optimizers_of(make_model(), "modern")
    assert optimizers.set_schedule(10, 100) == 1.0
    assert [group["momentum"] for group in optimizers.groups if "momentum" in group] == [pytest.approx(0.9)]


def test_a_run_of_before_goes_on_without_what_was_not_there(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run_dir: run\ndata: {train: [a.txt]}\noptim: {muon_momentum: 0.9}\n")
    config = PretrainConfig(run_dir="run", data=DataConfig(train=("a.txt",)), optim=OptimConfig(muon_momentum=0.9))
    then = as_it_began(config, tmp_path / "run.yaml").optim
    assert (then.muon_momentum_ramp, then.normuon, then.cautious_decay) == (0.0, False, False)


# --------------------------------------------------------------------------------------------------------- state


def take_step(model: GPT, optimizers: Optimizers, step: int) -> None:
    ids, targets = torch.randint(20, (2, 4, 8), generator=torch.Generator().manual_seed(step))
    optimizers.set_factor(1 / (step + 1))
    head_cross_entropy(model.hidden(ids), model.head.weight, targets, cap=15.0).backward()
    optimizers.step()
    optimizers.zero_grad()


@pytest.mark.parametrize("preset", ["modern", "classic"])
def test_a_run_restored_in_the_middle_repeats_the_other_bit_for_bit(preset: str) -> None:
    straight = make_model()
    optimizers = optimizers_of(straight, preset)
    for step in range(3):
        take_step(straight, optimizers, step)
    saved_weights = {name: weight.clone() for name, weight in straight.state_dict().items()}
    saved_state = {name: tensor.clone() for name, tensor in optimizers.tensors().items()}
    for step in range(3, 6):
        take_step(straight, optimizers, step)

    resumed = make_model()
    again = optimizers_of(resumed, preset)
    resumed.load_state_dict(saved_weights)
    slots = again.tensors(create=True)
    assert {name: slot.shape for name, slot in slots.items()} == {k: v.shape for k, v in saved_state.items()}
    for name, slot in slots.items():
        slot.copy_(saved_state[name])
    for step in range(3, 6):
        take_step(resumed, again, step)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))
    ended, ended_again = optimizers.tensors(), again.tensors()
    assert all(torch.equal(ended[name], ended_again[name]) for name in ended | ended_again)


@pytest.mark.parametrize("normuon", [True, False])
def test_rates_in_tensors_take_the_same_steps(normuon: bool) -> None:
    """As recorded steps have them (device.cuda_graphs)."""
    models = make_model(), make_model()
    for model, in_tensors in zip(models, (False, True), strict=True):
        optimizers = optimizers_of(model, "modern", normuon=normuon)
        if in_tensors:
            optimizers.use_tensor_rates()
        for step in range(3):
            take_step(model, optimizers, step)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_state_that_was_created_leaves_the_first_step_as_it_was() -> None:
    fresh, created = make_model(), make_model()
    optimizers = optimizers_of(created, "modern")
    assert optimizers.tensors() == {}
    optimizers.tensors(create=True)
    take_step(fresh, optimizers_of(fresh, "modern"), 0)
    take_step(created, optimizers, 0)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), created.parameters(), strict=True))
