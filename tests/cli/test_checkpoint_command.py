"""gptcli checkpoint: what a run has, and whether it is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import RunCli, Tiny


def test_list_names_the_latest_and_the_best(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("checkpoint", "list", tiny.run, "--json")
    assert (result.code, result.err) == (0, "")
    found = json.loads(result.out)
    assert [record["step"] for record in found] == [3, 6]
    assert "latest" in found[-1]["names"]
    assert sum("best" in record["names"] for record in found) == 1
    lines = run_cli("checkpoint", "list", tiny.run).text.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["step-000003", "step-000006"]


def test_verify_says_which_checkpoint_is_damaged_and_how(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    assert run_cli("checkpoint", "verify", tiny.run).text.count("\n") == 2
    run = shutil.copytree(tiny.run, tmp_path / "run", symlinks=True)
    path = run / "checkpoints" / "step-000006" / "training.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    result = run_cli("checkpoint", "verify", "run", "--json", "-q", cwd=tmp_path)
    result.error(3, "checkpoint", "1 of 2 checkpoints", "--resume")
    good, bad = json.loads(result.out)
    assert (good["step"], good["problem"]) == (3, None)
    assert "training.safetensors: its content has changed" in bad["problem"]
    one = run_cli("checkpoint", "verify", run / "checkpoints" / "step-000003")
    assert (one.code, one.text.split("\t")[0]) == (0, "step-000003")


def test_a_directory_without_checkpoints_is_told(tmp_path: Path, run_cli: RunCli) -> None:
    run_cli("checkpoint", "list", tmp_path / "none").error(2, "checkpoint", "none: no such directory")
    run_cli("checkpoint", "verify", tmp_path).error(3, "checkpoint", "holds no checkpoint")
