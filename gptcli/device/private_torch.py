"""Every name of PyTorch that gptcli uses though its documentation promises nothing of it, in one place.

Each was read in torch READ_IN. When pyproject's upper bound of torch moves, read them again:
tests/device/test_private_torch.py says which are gone and whether they still compute what they did. Operators of oneDNN
and FBGEMM are not in every build (macOS on arm64 has none), so that they are looked up when they are called.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

READ_IN = "2.13.0"

# Loops over lists of tensors in C++ (torch/_C/_VariableFunctions.pyi): what torch.optim's `foreach=True` calls.
foreach_add_ = torch._foreach_add_
foreach_mul_ = torch._foreach_mul_
foreach_norm = torch._foreach_norm
foreach_zero_ = torch._foreach_zero_

# AdamW's whole step in one kernel: what torch.optim.AdamW(fused=True) calls (torch/optim/adamw.py). The class itself
# imports torch._dynamo, a second or two at the start of every run.
fused_adamw_ = torch._fused_adamw_

# The gradient of softmax from its result: what autograd calls (derivatives.yaml, _softmax_backward_data).
softmax_backward_data = torch._softmax_backward_data
tanh_backward = torch.ops.aten.tanh_backward  # slope (1 - y^2), of the result y


def fake_tensors() -> AbstractContextManager[object]:
    """Return the mode in which tensors have shapes and no values (torch/_subclasses/fake_tensor.py)."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports torch._dynamo

    return FakeTensorMode(allow_non_fake_inputs=True)


def cpu_multiplies_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware; oneDNN emulates it elsewhere, slowly."""
    if any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")):
        return True
    asks = operator("mkldnn", "_is_mkldnn_bf16_supported")
    return platform.machine() in ("arm64", "aarch64") and asks is not None and bool(asks())


def operator(namespace: str, name: str) -> Any:
    """Return torch.ops.NAMESPACE.NAME, None where this build or machine has no such operator."""
    if namespace == "mkldnn" and not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return getattr(getattr(torch.ops, namespace), name, None)


# What generation calls thousands of times a second. `_op` is what an overload wraps (torch/_ops.py, OpOverload): to
# find it and to pass through its Python takes longer than a small product itself.
disable_torch_function = torch._C.DisableTorchFunctionSubclass  # torch/overrides.py
embedding_bag = torch.ops.aten._embedding_bag_forward_only.default._op  # native_functions.yaml
int8_weight_mm = torch._weight_int8pack_mm  # x (N, K) bfloat16, weight (M, K) int8, scales (M,) bfloat16 -> (N, M)
int_mm = torch._int_mm  # int8 (N, K) by int8 (K, M) -> int32 (N, M)


def onednn_pack(weight: Tensor) -> Tensor:
    """Return a matrix in oneDNN's own layout. AttributeError without oneDNN, RuntimeError for a dtype it has not."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def onednn_linear() -> Callable[..., Tensor]:
    """Return product(x, packed, bias, activation, scalars, algorithm). AttributeError without oneDNN."""
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default._op
    return product


def fbgemm_pack_half(weight: Tensor, bias: Tensor | None) -> Any:
    """Return a matrix packed in float16, for fbgemm_half_linear."""
    return torch.ops.quantized.linear_prepack_fp16(weight, bias)


def fbgemm_half_linear(x: Tensor, packed: Any) -> Tensor:
    """Return x W^T + b, float32, of what fbgemm_pack_half made."""
    y: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(x, packed)
    return y


def fbgemm_pack_int8(quantized: Tensor) -> Any:
    """Return a matrix quantized per channel, packed for fbgemm_int8_linear."""
    return torch.ops.quantized.linear_prepack(quantized, None)


def fbgemm_int8_linear() -> Callable[..., Tensor]:
    """Return product(x, scale, zero point, packed) of float32 rows that are rounded to 8 bits."""
    product: Callable[..., Tensor] = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default._op
    return product
