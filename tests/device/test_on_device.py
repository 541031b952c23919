"""What must hold on a device other than the CPU, by the real command.

Every preset and dtype trains to the same bits twice and goes on after a stop to them; every task trains; texts are
those of their seeds; int8 and compiled blocks run. Without `--device` nothing is tested here:
    pytest tests/device/test_on_device.py --device cuda
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from conftest import RunCli, Tiny
from safetensors import safe_open

ROWS = {
    "classify": [
        {"text": f"{'good' if n % 2 else 'bad'} number {n}", "label": "yes" if n % 2 else "no"} for n in range(24)
    ],
    "instruct": [{"prompt": f"Count {n}", "completion": f"{n} counted"} for n in range(24)],
    "chat": [
        {"messages": [{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
        for n in range(24)
    ],
    "prefer": [{"prompt": f"Say {n}", "chosen": f"yes, {n}", "rejected": f"no, {n}"} for n in range(24)],
}


@pytest.fixture
def on_device(request: pytest.FixtureRequest) -> str:
    """`runtime.device` of the device that is tested."""
    name = request.config.getoption("--device")
    if not name:
        pytest.skip("needs a device: --device cuda")
    return f"runtime.device={name}"


def weights(run: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a run's last checkpoint."""
    with safe_open(run / "latest" / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).contiguous().view(-1).numpy(force=True).tobytes() for name in file.keys()}  # noqa: SIM118


def train(run_cli: RunCli, tiny: Tiny, run: Path, *overrides: str) -> dict[str, bytes]:
    changes = [part for override in (f"run_dir={run}", *overrides) for part in ("-s", override)]
    result = run_cli("pretrain", tiny.run_file, "-q", *changes)
    assert result.code == 0, result.err
    return weights(run)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optim", ["modern", "classic"])
@pytest.mark.parametrize("model", ["modern", "llama", "gpt2"])
def test_a_run_ends_in_the_same_bits_twice_and_after_a_stop(
    run_cli: RunCli, tiny: Tiny, tmp_path: Path, on_device: str, model: str, optim: str, dtype: str
) -> None:
    how = [on_device, f"model.preset={model}", f"optim.preset={optim}", f"runtime.dtype={dtype}"]
    whole = train(run_cli, tiny, tmp_path / "a", *how)
    assert train(run_cli, tiny, tmp_path / "b", *how) == whole
    overrides = [part for override in (f"run_dir={tmp_path / 'c'}", *how) for part in ("-s", override)]
    mark = {"MARK": f"gptcli.train.loop:train_step:4:{int(signal.SIGTERM)}:1"}
    stopped = run_cli("pretrain", tiny.run_file, "-q", *overrides, env=mark)
    assert stopped.code == 128 + signal.SIGTERM, stopped.err
    result = run_cli("pretrain", tmp_path / "c" / "run.yaml", "--resume", "-q")
    assert result.code == 0, result.err
    assert weights(tmp_path / "c") == whole


def test_compiled_blocks_train(run_cli: RunCli, tiny: Tiny, tmp_path: Path, on_device: str) -> None:
    train(run_cli, tiny, tmp_path / "run", on_device, "runtime.compile=true")


@pytest.mark.parametrize("task", list(ROWS))
@pytest.mark.parametrize("lora", [False, True])
def test_every_task_trains(run_cli: RunCli, tiny: Tiny, tmp_path: Path, on_device: str, task: str, lora: bool) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]))
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        f"run_dir: {tmp_path / 'run'}\nbase: {tiny.run}\ntask: {task}\ndata: {{train: [{rows}]}}\n"
        "train: {epochs: 1, batch_size: 8}\n" + ("lora: {rank: 2}\n" if lora else "")
    )
    result = run_cli("finetune", run_file, "-q", "-s", on_device)
    assert result.code == 0, result.err


@pytest.mark.parametrize("how", [["--dtype", "float32"], ["--dtype", "bfloat16"], ["--quantize", "int8"]], ids=" ".join)
def test_a_seed_is_a_text_alone_and_among_others(run_cli: RunCli, tiny: Tiny, on_device: str, how: list[str]) -> None:
    options = ["--device", on_device.removeprefix("runtime.device="), *how, "--max-tokens", "12", "--seed", "3"]
    alone = run_cli("generate", tiny.run, "The miller", *options)
    assert alone.code == 0, alone.err
    asked = "".join(json.dumps({"prompt": prompt, "seed": 3}) + "\n" for prompt in ("The miller", "A cat sold", "The"))
    together = run_cli("generate", tiny.run, "--jsonl", *options, input=asked)
    assert together.code == 0, together.err
    first = json.loads(together.text.splitlines()[0])
    assert first["text"].strip() in alone.text if how != ["--dtype", "bfloat16"] else first["text"]
