"""The trial of attention kernels; on a CPU all of them are one, so that only its bookkeeping shows."""

from collections.abc import Iterator

import pytest
import torch

from gptcli.device import attention_kernels

CUDA = torch.backends.cuda
ENABLED = {
    "flash": CUDA.flash_sdp_enabled,
    "memory-efficient": CUDA.mem_efficient_sdp_enabled,
    "cudnn": CUDA.cudnn_sdp_enabled,
    "math": CUDA.math_sdp_enabled,
}
SETTERS = {**attention_kernels.KERNELS, "math": CUDA.enable_math_sdp}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {name: enabled() for name, enabled in ENABLED.items()}
    attention_kernels.fastest.cache_clear()
    yield
    attention_kernels.fastest.cache_clear()
    for name, enable in SETTERS.items():
        enable(before[name])


def test_one_kernel_stays_and_the_plain_one_in_reserve() -> None:
    name = attention_kernels.use_fastest((2, 4, 32, 16), 2, torch.float32, torch.device("cpu"))
    assert name in attention_kernels.KERNELS
    assert {kernel for kernel, enabled in ENABLED.items() if enabled()} == {name, "math"}
    assert (
        attention_kernels.use_fastest((2, 4, 32, 16), 2, torch.float32, torch.device("cpu")) == name
    )  # no second trial


def test_where_none_can_the_plain_one_does() -> None:
    shape = (1, 3, 8, 16)  # 3 heads cannot share 2
    assert attention_kernels.use_fastest(shape, 2, torch.float32, torch.device("cpu")) == "math"
    assert {kernel for kernel, enabled in ENABLED.items() if enabled()} == {"math"}
