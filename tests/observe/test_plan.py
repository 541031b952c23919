"""`gptcli plan`: GPT-3 as the paper has it, the arithmetic of time and price, and the memory that a run takes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, Tiny

EXAMPLES = Path(__file__).parents[2] / "examples"


def planned(run_cli: RunCli, *arguments: object) -> dict[str, Any]:
    result = run_cli("plan", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_gpt3_has_the_papers_parameters_and_flops(run_cli: RunCli) -> None:
    start = time.monotonic()
    found = planned(run_cli, EXAMPLES / "gpt3-175b.yaml", "--on", "h100")
    print(f"plan of gpt3-175b: {time.monotonic() - start:.1f} s")
    assert found["parameters"]["total"] == pytest.approx(174.6e9, rel=0.001)
    assert found["tokens"]["total"] == pytest.approx(300e9, rel=0.001)
    assert found["flops"]["weights"] == pytest.approx(3.14e23, rel=0.005)  # the paper leaves attention out
    assert found["flops"]["attention"] / found["flops"]["weights"] == pytest.approx(0.0277, rel=0.01)
    assert found["memory_bytes"]["weights"] == 4 * found["parameters"]["total"]
    assert (found["fits"], found["fitting_micro_batch_sizes"], found["limit"]) == (False, [], "memory")


def test_writing_needs_no_compiler(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    """torch._dynamo takes a second to import, and some innocent operations on the meta device import it."""
    program = (
        "import sys; from gptcli.cli.main import run; print('', run(sys.argv[1:]), 'torch._dynamo' in sys.modules)"
    )
    result = run_cli(
        "generate", tiny.run, "the", "--max-tokens", "2", python=[sys.executable, "-c", program], cwd=tmp_path
    )
    assert result.text.endswith(" 0 False\n")


def test_time_energy_and_price_follow_from_flops(run_cli: RunCli) -> None:
    common = (EXAMPLES / "gpt2-124m.yaml", "--mfu", 0.5, "--price", 3, "--watts", 500)
    found = planned(run_cli, *common, "--peak-flops", "100e12", "--memory", "40GiB")
    assert found["target"]["memory_bytes"] == 40 << 30
    assert found["seconds"] == pytest.approx(found["flops"]["total"] / 50e12)
    assert found["kilowatt_hours"] == pytest.approx(0.5 * found["seconds"] / 3600)
    assert found["price"] == pytest.approx(3 * found["seconds"] / 3600)
    best = found["compute_optimal"]["chinchilla"]
    assert best["tokens"] / best["parameters"] == pytest.approx(20)
    assert 6 * best["tokens"] * best["parameters"] == pytest.approx(found["flops"]["total"])


def test_a_run_that_does_not_fit_is_told_which_micro_batches_do(run_cli: RunCli) -> None:
    run = (EXAMPLES / "gpt2-124m.yaml", "-s", "train.batch_size=64", "-s", "train.micro_batch_size=64")
    found = planned(run_cli, *run, "--peak-flops", "1e13", "--memory", "12GB")
    assert not found["fits"]
    sizes = found["fitting_micro_batch_sizes"]
    assert sizes
    again = planned(
        run_cli, *run[:3], "-s", f"train.micro_batch_size={max(sizes)}", "--peak-flops", "1e13", "--memory", "12GB"
    )
    assert again["fits"]
    shown = run_cli("plan", *run, "--peak-flops", "1e13", "--memory", "12GB").text
    assert f"train.micro_batch_size that does: {', '.join(map(str, sizes))}\n" in shown


def test_data_that_are_there_are_counted(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    estimated = planned(run_cli, tiny.run_file, "--on", "l4")["tokens"]
    assert estimated["data_is_estimated"]
    prepared = tmp_path / "prepared"
    assert run_cli("prepare", tiny.corpus, "-t", tiny.tokenizer, "-o", prepared, "-q").code == 0
    (tmp_path / "run.yaml").write_text(f"run_dir: r\ndata: {{train: [{prepared}]}}\n")
    counted = planned(run_cli, tmp_path / "run.yaml", "--on", "l4")["tokens"]
    assert not counted["data_is_estimated"]
    assert estimated["data"] == pytest.approx(counted["data"], rel=0.05)
    assert counted["epochs"] == pytest.approx(counted["total"] / counted["data"])


@pytest.mark.parametrize("form", ["gzip", "jsonl", "jsonl gzip", "utf-16", "many gzip files"])
def test_text_is_counted_as_what_the_files_hold(form: str, tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    text = tiny.corpus.read_text()
    lines = [
        json.dumps({"id": n, "url": "http://x/" * 9, "text": line}) for n, line in enumerate(text.splitlines(True))
    ]
    rows = "".join(f"{line}\n" for line in lines)
    inputs: dict[str, dict[str, bytes]] = {
        "gzip": {"a.txt.gz": gzip.compress(text.encode())},
        "jsonl": {"a.jsonl": rows.encode()},
        "jsonl gzip": {"a.jsonl.gz": gzip.compress(rows.encode())},
        "utf-16": {"a.txt": text.encode("utf-16")},
        "many gzip files": {
            f"{n:02}.gz": gzip.compress(line.encode()) for n, line in enumerate(text.splitlines(True)[::10])
        },
    }
    for name, content in inputs[form].items():
        (tmp_path / name).write_bytes(content)
    files = [str(tmp_path / name) for name in inputs[form]]
    encoding = "utf-16" if form == "utf-16" else "utf-8"
    prepared, whole = tmp_path / "prepared", ("--validation-fraction", 0)
    made = run_cli("prepare", *files, "-t", tiny.tokenizer, "-o", prepared, "--encoding", encoding, *whole, "-q")
    assert made.code == 0, made.err

    def tokens(*inputs: object) -> int:
        keys = (f"data.train=[{','.join(map(str, inputs))}]", f"data.encoding={encoding}", "data.validation_fraction=0")
        given = (word for key in keys for word in ("-s", key))
        return planned(run_cli, tiny.run_file, *given, "--on", "l4")["tokens"]["data"]

    assert tokens(*files) == pytest.approx(tokens(prepared), rel=0.05 if form == "many gzip files" else 0.01)


def test_precision_decides_memory_and_peak(run_cli: RunCli) -> None:
    run = (EXAMPLES / "gpt2-124m.yaml", "--on", "h100")
    half, single = planned(run_cli, *run), planned(run_cli, *run, "-s", "runtime.dtype=float32")
    assert (half["target"]["flops_per_second"], single["target"]["flops_per_second"]) == (989e12, 67e12)
    assert single["memory_bytes"]["activations"] == pytest.approx(2 * half["memory_bytes"]["activations"], rel=0.1)
    assert single["cache_bytes_per_text"] == 2 * half["cache_bytes_per_text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--on", "abacus"], "--on: no accelerator 'abacus'; there are b200, h200, h100,"),
        (["--on", "h100", "--memory", "3GB"], "give one of them"),
        (["--memory", "3GB"], "--memory goes with --peak-flops"),
        (["--measure", "--on", "h100"], "--measure is for this machine"),
        (["--peak-flops", "1e12", "--memory", "lots"], "write 80GB, 24GiB"),
    ],
    ids=str,
)
def test_a_mistake_is_told_on_one_line(arguments: list[str], words: str, tiny: Tiny, run_cli: RunCli) -> None:
    assert len(run_cli("plan", tiny.run_file, *arguments).error(2, "plan", words)) == 1


SHAPES = {
    "one micro-batch": (256, "batch_size: 16", "preset: modern", "modern", 1),
    "four micro-batches": (256, "batch_size: 16, micro_batch_size: 4", "preset: modern", "modern", 1),
    "two at a time": (256, "batch_size: 8", "preset: modern", "modern", 2),
    "twice two": (256, "batch_size: 16", "preset: modern", "modern", 2),
    "gpt2": (256, "batch_size: 12", "preset: gpt2", "classic", 1),
    "wide vocabulary": (128, "batch_size: 4", "vocab_size: 20000", "modern", 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_takes_the_memory_that_was_planned(shape: str, tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    context, train, model, optim, threads = SHAPES[shape]
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        f"run_dir: {tmp_path / 'run'}\n"
        f"data: {{train: [{tiny.corpus}]}}\n"
        f"tokenizer: {{path: {tiny.tokenizer}}}\n"
        f"model: {{{model}, num_layers: 3, hidden_size: 192, num_heads: 3, context_length: {context}}}\n"
        f"optim: {{preset: {optim}}}\n"
        f"train: {{{train}, steps: 3, log_every_steps: 1, eval_every_steps: 2, sample_every_steps: 0}}\n"
        f"runtime: {{device: cpu, threads: {threads}}}\n"
    )
    plan = planned(run_cli, run_file)
    command = [sys.executable, "-m", "gptcli", "pretrain", str(run_file), "-q"]  # not a fork, which has less of its own
    subprocess.run(command, check=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    taken = max(record.get("memory_bytes", 0) for record in records)
    print(f"{shape}: planned {plan['memory_bytes']['total'] / 1e6:.0f} MB, taken {taken / 1e6:.0f} MB")
    assert plan["memory_bytes"]["total"] == pytest.approx(taken, rel=0.15)


def test_time_can_be_taken_from_real_steps(tiny: Tiny, run_cli: RunCli) -> None:
    found = planned(run_cli, tiny.run_file, "--measure")
    assert found["measured_step_seconds"] > 0
    assert found["seconds"] == pytest.approx(6 * found["measured_step_seconds"])
    assert found["fits"]
    result = run_cli("plan", EXAMPLES / "gpt3-175b.yaml", "--measure", "-s", "runtime.dtype=float32")
    result.error(1, "plan", "--measure: the run needs 5.9", "TB of memory and does not fit")


def test_sizes_that_a_budget_leaves_open_are_not_guessed(run_cli: RunCli) -> None:
    result = run_cli("plan", EXAMPLES / "budget.yaml", "--on", "h100")
    result.error(2, "plan", "budget.yaml:", "train.budget leaves steps and sizes to the start of the run")
    assert run_cli("plan", EXAMPLES / "budget.yaml", "--on", "h100", "-s", "train.steps=9").code == 0


def test_several_processes_share_optimizer_state_and_time(tiny: Tiny, run_cli: RunCli) -> None:
    common = (tiny.run_file, "-s", "train.batch_size=16", "--on", "h100", "--price", 2)
    one, four = planned(run_cli, *common), planned(run_cli, *common, "--processes", 4, "--bandwidth", "100Gbit")
    shared = four["shared"]
    assert shared["micro_batches"] == 4 * shared["rounds"]
    assert shared["exchange_seconds"] == pytest.approx(shared["sent_bytes"] / 12.5e9)
    steps = four["tokens"]["steps"]
    assert four["seconds"] == pytest.approx(one["seconds"] / 4 + steps * shared["exchange_seconds"])
    assert four["price"] == pytest.approx(4 * 2 * four["seconds"] / 3600)
    # Of a part, each process sends three quarters of all gradients in each round, and its own weights to three others.
    weights = 4 * one["parameters"]["total"]
    assert shared["sent_bytes"] >= (shared["rounds"] + 1) * 0.75 * weights
    assert shared["sent_bytes"] <= (shared["rounds"] + 1) * 0.75 * weights * 2
    assert four["memory_bytes"]["optimizer state"] < 0.6 * one["memory_bytes"]["optimizer state"]
    assert one["shared"] is None


def test_gpt3_in_a_thousand_processes_is_planned_in_seconds(run_cli: RunCli) -> None:
    common = (EXAMPLES / "gpt3-175b.yaml", "--on", "h100", "--processes", 1024)
    whole = planned(run_cli, *common, "-s", "parallel.shard=false")
    assert (whole["fits"], whole["shared"]["fewest"]) == (False, None)
    assert whole["memory_bytes"]["total"] > 4 * whole["parameters"]["total"]
    small = ("-s", "train.micro_batch_size=1", "-s", "runtime.activation_checkpointing=true")
    cut = planned(run_cli, *common, *small)
    assert cut["shared"]["sharded"], "there is no room for it whole"
    memory = cut["memory_bytes"]
    state = memory["weights"] + memory["gradients"] + memory["optimizer state"]
    assert state == pytest.approx(16 * cut["parameters"]["total"] / 1024)
    assert cut["fits"]


def test_what_fits_is_sharded_where_the_run_file_says_so(tiny: Tiny, run_cli: RunCli) -> None:
    common = (tiny.run_file, "-s", "train.batch_size=16", "--on", "h100", "--processes", 4)
    assert not planned(run_cli, *common)["shared"]["sharded"]
    found = planned(run_cli, *common, "-s", "parallel.shard=true")
    assert found["shared"]["sharded"]
    assert found["memory_bytes"]["gradients"] == found["parameters"]["total"]


def test_more_processes_than_sequences_have_nothing_to_do(run_cli: RunCli) -> None:
    result = run_cli("plan", EXAMPLES / "gpt2-124m.yaml", "--on", "h100", "--processes", 60000)
    result.error(2, "plan", "--processes", "sequences of a step")


@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="counts bytes as Linux does")
@pytest.mark.parametrize("exchange", ["micro_batch", "step", "sharded"])
def test_a_step_sends_as_many_bytes_as_planned(exchange: str) -> None:
    """In a network namespace of its own, in which nobody else sends."""
    import shutil
    import subprocess

    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces here")
    program = Path(__file__).parents[1] / "sent_bytes.py"
    script = f"ip link set lo up 2>/dev/null || ifconfig lo up; exec {sys.executable} {program} {exchange}"
    done = subprocess.run([unshare, "-rn", "sh", "-c", script], capture_output=True, text=True, timeout=300, check=True)
    sent, expected = map(int, done.stdout.split())
    assert sent == pytest.approx(expected, rel=0.05)
