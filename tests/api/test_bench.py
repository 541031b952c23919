"""`gptcli bench`: the figures are there, and of a size that a machine can have."""

from __future__ import annotations

import json

import pytest
from conftest import RunCli, Tiny

from gptcli.base.units import amount, duration
from gptcli.device import accelerators


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


def test_training_writing_and_the_machine_are_measured_with_a_run_file(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("bench", tiny.run_file, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    training, writing = facts["training"], facts["writing"]
    assert training["tokens_per_step"] == 4 * 32
    assert training["tokens_per_second"] == pytest.approx(128 / training["step_seconds"])
    assert training["step_seconds_min"] <= training["step_seconds"] <= training["step_seconds_max"]
    assert 0 < training["mfu"] < 1
    assert training["memory_bytes"] > 100 << 20
    (alone,) = writing["batches"]
    assert alone["batch"] == 1
    assert alone["decode_tokens_per_second"] > 1
    assert alone["mbu"] > 0
    assert facts["machine"]["threads"] == 1
    assert 0 < facts["start_seconds"]["gptcli"] < facts["start_seconds"]["torch"] + 1


def test_training_alone_is_a_table_of_tabs_in_a_pipe(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("bench", "train", tiny.run_file, "-s", "train.batch_size=8")
    assert (result.code, result.err) == (0, "")
    facts = dict(line.split("\t") for line in result.text.splitlines())
    assert facts["a step"].endswith("for 256 tokens")
    assert list(facts) == ["training", "a step", "FLOP/s", "peak memory"]


def test_several_processes_are_measured_beside_one(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("bench", tiny.run_file, "--processes", 2, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert (facts["processes"], facts["backend"], facts["tokens_per_step"]) == (2, "gloo", 128)
    sizes = [each["bytes"] for each in facts["all_reduce"]]
    assert sizes == sorted(sizes)
    for each in facts["all_reduce"]:
        assert each["bus_bytes_per_second"] == pytest.approx(
            each["bytes"] / each["seconds"]
        )  # of two: 2 (n - 1) / n = 1
    one, both = facts["one_process"], facts["all_processes"]
    assert facts["speedup"] == pytest.approx(one["step_seconds"] / both["step_seconds"])
    assert facts["efficiency"] == pytest.approx(facts["speedup"] / 2)
    assert "measuring 2 processes" in result.err
    result = run_cli("bench", tiny.run_file, "--processes", 2, "-s", "train.batch_size=1")
    result.error(2, "bench", "train.batch_size: 1 is fewer than the 2 processes")


def test_a_word_that_is_no_command_of_bench_is_taken_for_a_run_file(run_cli: RunCli) -> None:
    run_cli("bench", "nothing.yaml").error(2, "bench", "nothing.yaml: no such file")


def test_writing_is_measured_for_several_batches(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("bench", "generate", tiny.run, "--batch", 1, "--batch", 3, "--quantize", "int8", "--json", "-q")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert [speed["batch"] for speed in facts["batches"]] == [1, 3]
    for speed in facts["batches"]:
        assert speed["decode_tokens_per_second"] > 1
        assert speed["prefill_tokens_per_second"] > 1
        assert speed["mbu"] > 0
    assert facts["memory_bytes"] > facts["weight_bytes"] > 0
