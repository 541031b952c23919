"""Every private name of PyTorch is in one file, is there and computes what is said of it."""

import ast
import platform
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gptcli.config.train import RuntimeConfig
from gptcli.device import private_torch
from gptcli.device.runtime import make_runtime

PACKAGE = Path(private_torch.__file__).parent.parent
PRIVATE = re.compile(r"\btorch\.(_(?!dynamo\b|_version__)\w+|\w+(\.\w+)*\._(?!_)\w+|ops\.\w+)")


def test_no_other_module_uses_a_private_name() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "private_torch.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and PRIVATE.match(ast.unparse(node)):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_the_version_it_was_read_in_is_this_one_or_read_again() -> None:
    """Fails with a new PyTorch: read the names anew, then change READ_IN."""
    assert torch.__version__.partition("+")[0] == private_torch.READ_IN


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_loops_over_lists_do_what_their_names_say() -> None:
    tensors = [numbers(3, 4), numbers(5)]
    kept = [tensor.clone() for tensor in tensors]
    norms = private_torch.foreach_norm(tensors)
    assert [float(norm) for norm in norms] == pytest.approx([float(tensor.norm()) for tensor in tensors])
    private_torch.foreach_mul_(tensors, 2.0)
    private_torch.foreach_add_(tensors, kept, alpha=3.0)
    for tensor, before in zip(tensors, kept, strict=True):
        torch.testing.assert_close(tensor, 5 * before)
    private_torch.foreach_zero_(tensors)
    assert not any(tensor.any() for tensor in tensors)


def test_the_fused_step_is_adamws_formula() -> None:
    weight, gradient = numbers(6).double(), numbers(6, seed=2).double()
    average, square, step = torch.zeros(6).double(), torch.zeros(6).double(), torch.ones(())
    wanted = weight * (1 - 0.1 * 0.01) - 0.1 * gradient / (gradient.abs() + 1e-8)  # of the first step
    private_torch.fused_adamw_(
        [weight], [gradient], [average], [square], [], [step],
        lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.01, eps=1e-8, amsgrad=False, maximize=False,
    )  # fmt: skip
    torch.testing.assert_close(weight, wanted)


def test_softmaxs_gradient_is_autograds() -> None:
    x, slope = numbers(4, 7).requires_grad_(), numbers(4, 7, seed=2)
    y = x.softmax(-1)
    (wanted,) = torch.autograd.grad(y, x, slope)
    torch.testing.assert_close(private_torch.softmax_backward_data(slope, y.detach(), -1, torch.float32), wanted)


def test_tanhs_gradient_is_autograds() -> None:
    x, slope = numbers(4, 7).requires_grad_(), numbers(4, 7, seed=2)
    (wanted,) = torch.autograd.grad(x.tanh(), x, slope)
    torch.testing.assert_close(private_torch.tanh_backward(slope, x.detach().tanh()), wanted)


def test_embedding_bag_adds_weighted_rows() -> None:
    table, weights = numbers(5, 8), numbers(4)
    index, offsets = torch.tensor([0, 3, 1, 1]), torch.tensor([0, 2])
    sums = private_torch.embedding_bag(table, index, offsets, False, 0, False, weights)[0]
    rows = table[index] * weights[:, None]
    torch.testing.assert_close(sums, torch.stack((rows[:2].sum(0), rows[2:].sum(0))))


def test_products_of_8_bits() -> None:
    x, weight = numbers(32, 32).bfloat16(), torch.arange(-512, 512).view(32, 32).clamp(-127, 127).to(torch.int8)
    wanted = x.float() @ weight.float().t()
    found = private_torch.int8_weight_mm(x, weight, torch.ones(32, dtype=torch.bfloat16)).float()
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=2.0)
    whole = private_torch.int_mm(weight, weight.t().contiguous())
    assert torch.equal(whole.long(), weight.long() @ weight.long().t())


@pytest.mark.skipif(private_torch.operator("mkldnn", "_linear_pointwise") is None, reason="PyTorch without oneDNN")
def test_onednns_product() -> None:
    x, weight, bias = numbers(3, 16), numbers(8, 16, seed=2), numbers(8, seed=3)
    y = private_torch.onednn_linear()(x, private_torch.onednn_pack(weight), bias, "none", [], "")
    torch.testing.assert_close(y, torch.nn.functional.linear(x, weight, bias))


@pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="PyTorch without FBGEMM")
def test_fbgemms_products() -> None:
    x, weight, bias = numbers(3, 16), numbers(8, 16, seed=2), numbers(8, seed=3)
    wanted = torch.nn.functional.linear(x, weight, bias)
    packed = private_torch.fbgemm_pack_half(weight, bias)
    torch.testing.assert_close(private_torch.fbgemm_half_linear(x, packed), wanted, rtol=1e-2, atol=1e-2)
    scales = weight.abs().amax(1) / 63
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it will go
        quantized = torch.quantize_per_channel(weight, scales, torch.zeros(8, dtype=torch.long), 0, torch.qint8)
    scale = float(x.abs().max()) / 127
    y = private_torch.fbgemm_int8_linear()(x, scale, 128, private_torch.fbgemm_pack_int8(quantized))
    torch.testing.assert_close(y, wanted - bias, rtol=0.1, atol=0.3)


# ------------------------------------------------------------------------------------------------ macOS on arm64


@pytest.fixture
def apple_silicon(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch as its macOS wheels for arm64 are: no oneDNN, so that the namespace of its operators is empty."""
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.usefixtures("apple_silicon")
@pytest.mark.parametrize("inference", [False, True])
def test_a_runtime_without_onednn(inference: bool) -> None:
    runtime = make_runtime(RuntimeConfig(device="cpu"), inference=inference)
    assert runtime.dtype == torch.float32


def test_arm64_with_onednn_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (True, False):
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        monkeypatch.setattr(
            torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda answer=answer: answer)
        )
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda: False)
        assert private_torch.cpu_multiplies_bfloat16() == answer
