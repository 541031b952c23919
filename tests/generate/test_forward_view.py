"""The view of a model that texts are written with: the same numbers, and a model that stays one."""

import pytest
import torch
from random_models import randomized
from torch import Tensor, nn

from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Engine, Request
from gptcli.generate.forward_view import ForwardView
from gptcli.generate.packed_weights import pack
from gptcli.model.gpt import GPT

torch.set_num_threads(1)
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)


def make_model(preset: str) -> GPT:
    shape = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "context_length": 64, "vocab_size": 300}
    return randomized(GPT(ModelConfig.from_preset(preset, **shape)), 0.4)


@pytest.mark.parametrize("preset", ["modern", "gpt2", "llama"])
@pytest.mark.parametrize("laid_out", [False, True])
@torch.no_grad()
def test_a_view_computes_what_the_model_does_and_leaves_it_alone(preset: str, laid_out: bool) -> None:
    model = make_model(preset)
    if laid_out:
        pack(model, CPU)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    forward = ForwardView(model, CPU)
    ids = torch.arange(40).view(2, 20)
    assert forward.used is not model
    assert torch.equal(forward.used(ids), model(ids))
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
    weight = model.final_norm.weight if model.final_norm.weight is not None else model.embedding.weight
    weight.mul_(2)
    assert torch.equal(forward.used(ids), model(ids))


def test_hooks_on_a_model_that_writes_are_heard() -> None:
    """On any part, put there before or after the engine was made; without them the view is used again."""
    tokenizer = learn_merges(["the cat sat on the mat"] * 3, vocab_size=300)
    model = make_model("modern")
    runtime = pack(model, CPU)
    engine = Engine(model, tokenizer, runtime, slots=1)
    request = Request([1, 2, 3], GenerateOptions(max_tokens=5, stop_at_eos=False))
    (plain,) = engine.run([request])
    heard: list[str] = []

    def heard_of(name: str) -> None:
        def hook(*_: object) -> None:
            heard.append(name)

        parts[name].register_forward_hook(hook)

    parts: dict[str, nn.Module] = {
        "attention": model.blocks[0].get_submodule("attention"),
        "up": model.blocks[1].get_submodule("mlp.up"),
        "norm": model.final_norm,
    }
    for name in parts:
        heard_of(name)
    (hooked,) = engine.run([request])
    assert hooked.ids == plain.ids
    assert {name: heard.count(name) for name in parts} == dict.fromkeys(parts, heard.count("norm"))
    assert heard.count("norm") >= 4
    for part in parts.values():
        part._forward_hooks.clear()
    engine.forward.hear_hooks()
    assert engine.forward.used is engine.forward.view


def test_a_hook_can_change_what_is_written() -> None:
    tokenizer = learn_merges(["the cat sat on the mat"] * 3, vocab_size=300)
    model = make_model("gpt2")
    runtime = pack(model, CPU)

    def only_seven(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        return torch.where(torch.arange(logits.shape[-1]) == 7, 100.0, logits)

    model.head.register_forward_hook(only_seven)
    (completion,) = Engine(model, tokenizer, runtime).run([Request([1], GenerateOptions(max_tokens=4))])
    assert completion.ids == [7] * 4
