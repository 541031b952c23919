"""The KV cache: prompts and single tokens give the logits of whole windows; float32 rows have the same bits alone."""

import random

import pytest
import torch
from torch import Tensor

from gptcli.config.model import ModelConfig
from gptcli.generate.kv_cache import QUERY_BLOCK, Decode, KVCache, Prefill
from gptcli.model.gpt import GPT

torch.set_num_threads(1)  # shapes so small that threads only wait for each other

SMALL = {"num_layers": 2, "num_heads": 4, "hidden_size": 64, "context_length": 192, "vocab_size": 512}
SHAPES = [("modern", None), ("gpt2", None), ("llama", None), ("modern", 2), ("llama", 1)]  # preset, key/value heads


def make_model(preset: str, kv_heads: int | None) -> GPT:
    model = GPT(ModelConfig.from_preset(preset, **{**SMALL, "num_kv_heads": kv_heads}))
    generator = torch.Generator().manual_seed(1)
    model.initialize(generator)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return model.eval()


def make_cache(model: GPT, rows: int, capacity: int = 192, dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache(model.config, rows, capacity, dtype=dtype, device=torch.device("cpu"))
    cache.keys.fill_(1e4)  # what an earlier text left behind must not show
    cache.values.fill_(1e4)
    return cache


def texts(count: int, length: int) -> list[Tensor]:
    return [torch.randint(512, (length,), generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.mark.parametrize(("preset", "kv_heads"), SHAPES)
@torch.no_grad()
def test_cached_logits_equal_those_of_the_whole_window(preset: str, kv_heads: int | None) -> None:
    """Rows of mixed lengths: prompts in two parts, then one to three tokens for all, and rows swapped on the way."""
    model, chance = make_model(preset, kv_heads), random.Random(1)
    cache, ids = make_cache(model, 4), texts(4, 192)
    whole = [model(text[None])[0] for text in ids]
    for row, length in [(2, 33), (0, 3), (3, 64), (1, 1)]:  # the rest comes in one pass
        model.hidden(ids[row][None, :length], layout=Prefill(cache, [row], [length]))
    counts = [5, 40, 90, 1]
    starts = list(cache.lengths)
    new = torch.cat([ids[row][start : start + n] for row, (start, n) in enumerate(zip(starts, counts, strict=True))])
    logits = model.logits(model.hidden(new[None], layout=Prefill(cache, [0, 1, 2, 3], counts)))[0]
    for row, piece in enumerate(logits.split(counts)):
        wanted = whole[row][starts[row] : starts[row] + counts[row]]
        torch.testing.assert_close(piece, wanted, rtol=1e-5, atol=2e-5)
    rows = [0, 1, 2, 3]  # the text in each row of the cache
    for step in range(15):
        if step % 4 == 3:
            one, other = chance.sample(range(4), 2)
            cache.swap(one, other)
            rows[one], rows[other] = rows[other], rows[one]
        tokens, lengths = 1 + step % 3, list(cache.lengths)
        batch = torch.stack([ids[text][lengths[row] : lengths[row] + tokens] for row, text in enumerate(rows)])
        logits = model.logits(model.hidden(batch, layout=Decode(cache, 4, tokens)))
        for row, text in enumerate(rows):
            wanted = whole[text][lengths[row] : lengths[row] + tokens]
            torch.testing.assert_close(logits[row], wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("preset", "kv_heads"), SHAPES)
@torch.no_grad()
def test_keys_and_values_of_16_bits_are_rounded_once(preset: str, kv_heads: int | None) -> None:
    """Prompts and decoding, one row and several: near float32."""
    model, ids = make_model(preset, kv_heads), texts(3, 100)
    whole = [model(text[None])[0] for text in ids]
    lengths = [1, 40, 90]

    def decoded(rows: list[int]) -> list[Tensor]:
        cache = make_cache(model, len(rows), dtype=torch.float16)
        counts = [lengths[row] for row in rows]
        prompts = torch.cat([ids[row][:count] for row, count in zip(rows, counts, strict=True)])
        model.hidden(prompts[None], layout=Prefill(cache, range(len(rows)), counts))
        found = []
        for step in range(8):
            batch = torch.stack([ids[row][lengths[row] + step : lengths[row] + step + 1] for row in rows])
            found.append(model.logits(model.hidden(batch, layout=Decode(cache, len(rows), 1)))[:, 0])
        return list(torch.stack(found, 1))

    together = decoded([0, 1, 2])
    for row in range(3):
        wanted = whole[row][lengths[row] : lengths[row] + 8]
        for found in (decoded([row])[0], together[row]):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
            assert (found - wanted).abs().max() > 1e-5


@torch.no_grad()
def test_a_copied_beginning_goes_on_like_its_source() -> None:
    model, ids = make_model("modern", None), texts(1, 100)[0]
    cache = make_cache(model, 2)
    model.hidden(ids[None, :80], layout=Prefill(cache, [0], [80]))
    cache.copy(0, 1, QUERY_BLOCK)
    rest = ids[None, QUERY_BLOCK:80]
    hidden = model.hidden(rest, layout=Prefill(cache, [1], [rest.shape[1]]))
    assert cache.lengths == [80, 80]
    torch.testing.assert_close(model.logits(hidden), model(ids[None, :80])[:, QUERY_BLOCK:], rtol=1e-5, atol=2e-5)


@torch.no_grad()
def test_a_cache_grows_with_what_it_holds() -> None:
    model, ids = make_model("modern", None), texts(1, 100)[0]
    cache = make_cache(model, 2, 50)
    model.hidden(ids[None, :50], layout=Prefill(cache, [1], [50]))
    cache = cache.grown(model.config, 100)
    hidden = model.hidden(ids[None, 50:], layout=Prefill(cache, [1], [50]))
    torch.testing.assert_close(model.logits(hidden), model(ids[None])[:, 50:], rtol=1e-5, atol=2e-5)


def test_a_cache_refuses_more_tokens_than_it_holds() -> None:
    cache = make_cache(make_model("modern", None), 2, 8)
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8"):
        Prefill(cache, [0], [9])
    cache.lengths[1] = 8
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8"):
        Decode(cache, 2, 1)
