"""`gptcli bench`: the figures are there, and of a size that a machine can have."""

from __future__ import annotations

import json

import pytest
from conftest import RunCli

from gptcli import accelerators
from gptcli.amounts import amount, duration


def test_the_machines_peaks_are_measured(run_cli: RunCli) -> None:
    result = run_cli("bench", "machine", "--threads", 1, "--json")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert facts["threads"] == 1
    assert 1e8 < facts["float32_flops_per_second"] < 1e13
    assert 1e7 < facts["bfloat16_flops_per_second"] < 1e14
    assert 1e8 < facts["read_bytes_per_second"] < 1e13
    assert facts["memory_bytes"] > 1 << 28


def test_a_device_that_is_not_there_is_refused(run_cli: RunCli) -> None:
    run_cli("bench", "machine", "--device", "cuda:99").error(2, "bench", "cuda:99 is not available here")


@pytest.mark.parametrize(
    ("name", "known"),
    [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-40GB", "A100"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"),
     ("NVIDIA GeForce RTX 4090", "4090"), ("Tesla K80", None)],
)  # fmt: skip
def test_a_drivers_name_finds_its_data_sheet(name: str, known: str | None) -> None:
    found = accelerators.find(name)
    assert (found.name if found else None) == known


def test_amounts_have_three_digits_and_a_prefix() -> None:
    assert amount(1.234e9, "FLOP/s") == "1.23 GFLOP/s"
    assert amount(999.9, "B") == "1 kB"
    assert amount(12, "B") == "12 B"
    assert amount(3.14e23, "FLOP") == "314 ZFLOP"
    assert [duration(s) for s in (0.0123, 59.94, 600, 7500, 4e5, 1e9)] == [
        "12.3 ms", "59.9 s", "10 min", "2 h 5 min", "4.63 days", "32 years",
    ]  # fmt: skip
