"""Several steps in one go write what single steps write; here on a CPU, where the steps run without a CUDA graph."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from random_models import randomized

from gptcli.base.errors import NumericalError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.multi_step import _kept, _Steps
from gptcli.generate.sampling import draw, draw_on_device
from gptcli.model.gpt import GPT

torch.set_num_threads(1)
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WORDS = "one two three four five six seven eight nine ten "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges([WORDS] * 3, vocab_size=300)


def make_model(preset: str, tokenizer: Tokenizer) -> GPT:
    """Weights so large that no two tokens are about as likely."""
    shape = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "context_length": 64}
    shape |= {"bigram_rows": 700} if preset == "bigrams" else {}
    model = GPT(
        ModelConfig.from_preset(preset.replace("bigrams", "modern"), **shape, vocab_size=tokenizer.vocab_size + 6)
    )
    return randomized(model, 0.4)


def outcome(completion: Completion) -> tuple[list[int], str, str | None]:
    return completion.ids, completion.text, completion.finish_reason


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
]


@pytest.mark.parametrize("preset", ["modern", "gpt2", "llama", "bigrams"])
@pytest.mark.parametrize("options", OPTIONS)
def test_steps_in_one_go_write_the_same_text(preset: str, options: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Prompts that begin alike, ends by stop string, by length and by the context, more texts than rows."""
    model, chance = make_model(preset, tokenizer), random.Random(1)
    ids = tokenizer.encode(WORDS)
    asked = [
        Request(
            ids[: chance.randint(1, 20)],
            GenerateOptions(max_tokens=chance.choice([1, 3, 9, 30, 80]), seed=number, stop=("ive",), **options),
        )
        for number in range(24)
    ]
    wanted = [outcome(c) for c in Engine(model, tokenizer, CPU, slots=5, ahead=0).run(asked)]
    engine = Engine(model, tokenizer, CPU, slots=5, ahead=4)
    for _ in range(2):  # the second time over what the first left behind
        assert [outcome(c) for c in engine.run(asked)] == wanted
    assert engine.multi_step is not None
    assert engine.multi_step.made


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.3}, {"regex": "[a-z ]*"}, {"min_tokens": 6}, {"stop_at_eos": False}]
)
def test_rows_that_need_a_look_at_each_token_get_it(options: dict[str, Any], tokenizer: Tokenizer) -> None:
    model = make_model("gpt2", tokenizer)
    plain = GenerateOptions(max_tokens=12, temperature=1.0)
    asked = [Request([5], GenerateOptions(max_tokens=20, temperature=1.0, seed=n, **options)) for n in range(4)]
    asked += [Request([6], plain), Request([7], GenerateOptions(max_tokens=12, temperature=0.5))]
    wanted = [outcome(c) for c in Engine(model, tokenizer, CPU, slots=3, ahead=0).run(asked)]
    assert [outcome(c) for c in Engine(model, tokenizer, CPU, slots=3, ahead=4).run(asked)] == wanted


@pytest.mark.parametrize("options", OPTIONS)
def test_a_logit_that_is_not_finite_is_told_where_a_text_meets_it(
    options: dict[str, Any], tokenizer: Tokenizer
) -> None:
    """At position 12: a text that ends before it is whole, whatever the steps beyond its end computed."""
    model = make_model("gpt2", tokenizer)
    with torch.no_grad():
        model.position_embedding.weight[12] = float("nan")
    for ahead in (0, 8):
        engine = Engine(model, tokenizer, CPU, slots=1, ahead=ahead)
        (whole,) = engine.run([Request([5, 6], GenerateOptions(max_tokens=9, stop_at_eos=True, **options))])
        assert len(whole.ids) <= 9
        with pytest.raises(NumericalError, match="position 12"):  # one of several, for a text may end of itself
            list(engine.run(Request([5, 6], GenerateOptions(max_tokens=30, seed=n, **options)) for n in range(9)))


def test_recording_leaves_the_cache_as_it_is(tokenizer: Tokenizer) -> None:
    model = make_model("llama", tokenizer)
    engine = Engine(model, tokenizer, CPU, slots=4, ahead=4)
    list(engine.run([Request([5 + n], GenerateOptions(max_tokens=9)) for n in range(4)]))
    cache = engine.prefixes.cache
    keys, values = cache.keys.clone(), cache.values.clone()
    steps = _Steps(
        model, cache, GenerateOptions(), batch=4, end=cache.keys.shape[3], count=4, vocab_size=tokenizer.vocab_size
    )
    with torch.inference_mode():
        replay = _kept(steps, lambda work: lambda: work())
    assert replay is not steps
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)


def test_few_buckets_are_kept(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.generate.multi_step.MOST_GRAPHS", 2)
    model = make_model("gpt2", tokenizer)
    asked = [Request([5], GenerateOptions(max_tokens=20, temperature=0.5 + n / 10)) for n in range(5)]
    engine = Engine(model, tokenizer, CPU, slots=1, ahead=4)
    found = [outcome(c) for c in engine.run(asked)]
    assert found == [outcome(c) for c in Engine(model, tokenizer, CPU, slots=1, ahead=0).run(asked)]
    assert engine.multi_step is not None
    assert len(engine.multi_step.made) == 2


@pytest.mark.parametrize("options", OPTIONS)
def test_drawing_on_the_device_is_drawing(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    given = GenerateOptions(**options)
    for size in (1, 5, 300):
        logits = torch.randn(64, size, generator=generator) * 3
        uniforms = torch.rand(64, generator=generator, dtype=torch.float64)
        found = draw_on_device(logits, given, uniforms).tolist()
        assert found == [
            draw(row, given, uniform) for row, uniform in zip(logits.numpy(), uniforms.tolist(), strict=True)
        ]


def test_a_free_row_that_is_full_is_written_to_without_harm(tokenizer: Tokenizer) -> None:
    """Three texts use a bucket of four rows; what the fourth holds, up to the end of the context, is cut back."""
    model = make_model("gpt2", tokenizer)
    long = GenerateOptions(max_tokens=80, temperature=1.0, seed=1)
    short = [GenerateOptions(max_tokens=20, temperature=1.0, seed=seed) for seed in range(3)]
    engines = [Engine(model, tokenizer, CPU, slots=4, ahead=ahead) for ahead in (0, 4)]
    found = []
    for engine in engines:
        texts = [outcome(c) for c in engine.run([Request([9 + n], long) for n in range(4)])]
        texts += [outcome(c) for c in engine.run([Request([40 + n], how) for n, how in enumerate(short)])]
        again = itertools.chain.from_iterable(engine.run([Request([9 + n], long)]) for n in range(4))
        found.append(texts + [outcome(c) for c in again])
    assert found[0] == found[1]
