"""The abilities of accelerators, by their makers' data sheets. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Accelerator:
    """Dense bfloat16 and float32 peaks, memory and its bandwidth, and power of one device, of the form with the most of
    each. float32 is that of the ordinary units, as PyTorch multiplies by default, not of TF32."""

    name: str
    flops_per_second: float
    float32_flops_per_second: float
    memory_bytes: int
    read_bytes_per_second: float
    watts: float


ACCELERATORS = (
    Accelerator("B200", 2250e12, 75e12, 180 * GIB, 8.0e12, 1000),
    Accelerator("H200", 989e12, 67e12, 141 * GIB, 4.8e12, 700),
    Accelerator("H100", 989e12, 67e12, 80 * GIB, 3.35e12, 700),
    Accelerator("A100", 312e12, 19.5e12, 80 * GIB, 2.039e12, 400),
    Accelerator("L40S", 362e12, 91.6e12, 48 * GIB, 0.864e12, 350),
    Accelerator("L4", 121e12, 30.3e12, 24 * GIB, 0.3e12, 72),
    Accelerator("A10G", 70e12, 35e12, 24 * GIB, 0.6e12, 300),
    Accelerator("4090", 165e12, 82.6e12, 24 * GIB, 1.008e12, 450),
    Accelerator("3090", 71e12, 35.6e12, 24 * GIB, 0.936e12, 350),
)


def find(device_name: str) -> Accelerator | None:
    """Return the accelerator that a driver's name such as `NVIDIA H100 80GB HBM3` means."""
    words = device_name.upper().replace("-", " ").split()
    return next((known for known in ACCELERATORS if known.name in words), None)
