"""Packed and quantised matrices: how close they are to the plain product, and the same alone as among others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import randomized
from torch import Tensor, nn

from gptcli.base.errors import ConfigError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate import packed_weights
from gptcli.generate.engine import Engine, Request
from gptcli.generate.packed_weights import HalfLinear, Int8CudaLinear, Int8Linear, Int8WeightLinear, PackedLinear, pack
from gptcli.model.gpt import GPT

torch.set_num_threads(1)

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WORDS = "the cat sat on the mat and the dog lay under the table while it rained all day and nobody came to see it"
FBGEMM = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch was built without FBGEMM"
)


def linear(bias: bool, outputs: int = 96, inputs: int = 64) -> tuple[nn.Linear, Tensor]:
    """A layer and 40 rows, of very different sizes and with an outlier each."""
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(0.0, 0.1, generator=generator)
    rows = torch.randn(40, inputs, generator=generator) * torch.logspace(-3, 3, 40)[:, None]
    rows[:, 5] *= 10
    rows[7] = 0
    return layer, rows


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda layer: PackedLinear(layer, torch.float32), 1e-6),
        pytest.param(Int8Linear, 0.03, marks=FBGEMM),
        (Int8WeightLinear, 0.02),
        (Int8CudaLinear, 0.02),
        pytest.param(HalfLinear, 5e-4, marks=FBGEMM),
    ],
)
@torch.inference_mode()
def test_rows_are_as_close_to_the_exact_product_as_their_bits_allow(
    make: Callable[[nn.Linear], nn.Module], error: float, bias: bool
) -> None:
    layer, rows = linear(bias)
    wanted = layer.double()(rows.double())
    found = make(layer.float())(rows.view(2, 20, -1)).view(40, -1).double()
    off = (found - wanted).norm(dim=1)
    scale = (wanted - (0 if layer.bias is None else layer.bias)).norm(dim=1) + wanted.norm(dim=1)
    assert bool((off <= error * scale).all())


@pytest.mark.parametrize(
    "make",
    [lambda layer: PackedLinear(layer, torch.float32), pytest.param(Int8Linear, marks=FBGEMM), Int8CudaLinear],
)
@pytest.mark.parametrize("shape", [(96, 64), (130, 100), (1000, 256)])
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_among_others(
    make: Callable[[nn.Linear], nn.Module], shape: tuple[int, int]
) -> None:
    layer, rows = linear(True, *shape)
    packed = make(layer)
    alone = torch.cat([packed(row[None]) for row in rows])
    for count in (2, 3, 7, 8, 16, 31, 40):
        assert torch.equal(packed(rows[:count]), alone[:count])


@FBGEMM
@torch.inference_mode()
def test_int8_products_do_not_overflow() -> None:
    """The largest products there can be: the FBGEMM of a CPU without a byte dot product adds them in 16 bits."""
    layer = nn.Linear(64, 4, bias=False)
    layer.weight.fill_(1.0)
    torch.testing.assert_close(Int8Linear(layer)(torch.ones(2, 64)), torch.full((2, 4), 64.0), rtol=0.02, atol=0)


# --------------------------------------------------------------------------------------------------------- engines


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges([WORDS] * 3, vocab_size=290)


def make_model(tokenizer: Tokenizer, preset: str, **changes: Any) -> GPT:
    shape = {"num_layers": 2, "num_heads": 4, "hidden_size": 64, "context_length": 160, **changes}
    model = GPT(ModelConfig.from_preset(preset, **shape, vocab_size=tokenizer.vocab_size))
    return randomized(model, 0.3)


@pytest.mark.parametrize("quantize", [None, pytest.param("int8", marks=FBGEMM)])
@pytest.mark.parametrize(("preset", "changes"), [("gpt2", {}), ("modern", {"num_kv_heads": 2}), ("llama", {})])
def test_log_probabilities_have_the_same_bits_alone_and_in_any_batch(
    tokenizer: Tokenizer, preset: str, changes: dict[str, Any], quantize: packed_weights.Quantize | None
) -> None:
    """Prompts across several blocks, beginnings that are shared, texts across several multiples of keys."""
    model = make_model(tokenizer, preset, **changes)
    used = pack(model, CPU, quantize=quantize)
    assert used.short_cache == (quantize is not None)
    ids = tokenizer.encode(WORDS * 4)
    prompts = [ids[: 5 + 17 * number % 90] for number in range(4)] + [[*ids[:50], number] for number in range(3)]
    options = GenerateOptions(max_tokens=40, temperature=1.0, logprobs=1)
    asked = [Request(prompt, options, sample) for sample, prompt in enumerate(prompts)]
    alone = [(c.ids, c.logprobs) for r in asked for c in Engine(model, tokenizer, used, slots=1).run([r])]
    for slots in (3, 7):
        assert [(c.ids, c.logprobs) for c in Engine(model, tokenizer, used, slots=slots).run(asked)] == alone


@pytest.mark.parametrize("preset", ["gpt2", "modern"])
@torch.inference_mode()
def test_bfloat16_is_near_float32_in_every_batch(tokenizer: Tokenizer, preset: str) -> None:
    """No bits are promised below float32: rows of a batch may round otherwise than a row alone."""
    prompt = tokenizer.encode(WORDS)
    options = GenerateOptions(max_tokens=1, temperature=0.0, logprobs=1)
    half = Runtime(device=CPU.device, dtype=torch.bfloat16, threads=1)
    exact, rounded = make_model(tokenizer, preset), make_model(tokenizer, preset).bfloat16()
    used = pack(rounded, half)
    asked = [Request(prompt[:length], options) for length in range(1, 9)]
    wanted = [c.logprobs[0] for c in Engine(exact, tokenizer, CPU, slots=1).run(asked)]
    for slots in (1, 8):
        found = [c.logprobs[0] for c in Engine(rounded, tokenizer, used, slots=slots).run(asked)]
        assert found == pytest.approx(wanted, abs=0.3)


@pytest.mark.parametrize("ahead", [0, 4])
@pytest.mark.parametrize("preset", ["gpt2", "modern"])
@torch.inference_mode()
def test_int8_for_cuda_is_near_float32(tokenizer: Tokenizer, preset: str, ahead: int) -> None:
    """The layers that a CUDA device would have, on a CPU, in bfloat16 beside them as there; one step or several."""
    prompt = tokenizer.encode(WORDS)
    options = GenerateOptions(max_tokens=1 + ahead, temperature=0.0, logprobs=0 if ahead else 1)
    runtime = Runtime(device=torch.device("cuda"), dtype=torch.bfloat16, threads=1)
    exact, rounded = make_model(tokenizer, preset), make_model(tokenizer, preset)
    assert pack(rounded, runtime, quantize="int8") == runtime
    assert isinstance(rounded.head, Int8CudaLinear)
    used = Runtime(device=CPU.device, dtype=torch.bfloat16, threads=1)
    (wanted,) = Engine(exact, tokenizer, CPU, slots=1).run([Request(prompt, options)])
    (found,) = Engine(rounded, tokenizer, used, slots=1, ahead=ahead).run([Request(prompt, options)])
    assert found.logprobs == pytest.approx(wanted.logprobs, abs=0.3)
    assert len(found.ids) == len(wanted.ids)


@pytest.mark.parametrize(
    ("runtime", "problem"),
    [
        (Runtime(device=torch.device("meta"), dtype=torch.float32, threads=1), "is for a CPU or CUDA"),
        (Runtime(device=torch.device("cpu"), dtype=torch.bfloat16, threads=1), "leave out --dtype"),
    ],
)
def test_int8_that_is_not_to_be_had_is_refused(tokenizer: Tokenizer, runtime: Runtime, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        pack(make_model(tokenizer, "gpt2"), runtime, quantize="int8")
