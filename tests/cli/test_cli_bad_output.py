"""Outputs that cannot be written, terminals and signals: one line, an exit code, and no traceback."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import GPTCLI, RunCli, Tiny, english, environment

# ------------------------------------------------------------------------------------------------------------- outputs


def test_an_output_that_exists_is_replaced_by_force_only(corpus: Path, tmp_path: Path, run_cli: RunCli) -> None:
    output = tmp_path / "tok.json"
    output.write_text("precious")
    command = ("train-tokenizer", corpus, "-o", output, "--vocab-size", 260)
    run_cli(*command).error(5, "train-tokenizer", "tok.json: exists", "--force")
    assert output.read_text() == "precious"
    assert run_cli(*command, "--force").code == 0
    assert json.loads(output.read_text())["model"]["type"] == "BPE"
    data = tmp_path / "data"
    data.mkdir()
    (data / "letter.txt").write_text("precious")
    command = ("prepare", corpus, "-t", output, "-o", data, "-q")
    run_cli(*command).error(5, "prepare", "data: exists", "--force")
    run_cli(*command, "--force").error(5, "prepare", "data: holds no manifest.json of gptcli's")
    assert (data / "letter.txt").read_text() == "precious"
    (data / "letter.txt").unlink()
    assert run_cli(*command, "--force").code == 0
    assert run_cli(*command, "--force").code == 0
    assert (data / "index.json").is_file()


def test_no_output_takes_an_input_away(corpus: Path, tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    text = tmp_path / "corpus.txt"
    text.write_bytes(corpus.read_bytes())
    refused = run_cli("train-tokenizer", text, "-o", text, "--vocab-size", 260, "--force")
    refused.error(5, "train-tokenizer", "corpus.txt: would replace the input")
    run_cli("export", tiny.run, "--to", "hf", "-o", text, "--force").error(5, "export", "corpus.txt: is a file")
    run_cli("quickstart", "-o", tmp_path).error(5, "quickstart", "holds files", "--force")
    assert text.read_bytes() == corpus.read_bytes()
    base = tmp_path / "base"
    shutil.copytree(tiny.run, base, symlinks=True)
    run_cli("export", base, "--to", "hf", "-o", base / "latest", "--force").error(5, "export", "would replace")
    assert run_cli("checkpoint", "verify", base).code == 0


@pytest.mark.parametrize("place", ["file/below/tok.json", "/proc/tok.json", "/proc/none/tok.json"])
def test_a_place_that_takes_no_files_is_told_before_any_work(
    place: str, corpus: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "file").write_text("not a directory")
    result = run_cli("train-tokenizer", corpus, "-o", place, cwd=tmp_path)
    assert len(result.error(1, "train-tokenizer", place.split("/")[0])) == 1


def test_a_full_disk_behind_stdout_is_told(tokenizer: Path, run_bash: RunCli) -> None:
    for command in (f"echo text | gptcli encode {tokenizer}", f"echo text | gptcli count {tokenizer} --json"):
        result = run_bash(f"{command} > /dev/full")
        assert len(result.error(1, "(encode|count)", "stdout: No space left on device")) == 1
    result = run_bash("gptcli --help > /dev/full")
    assert result.code == 1
    assert result.err == "gptcli: error: stdout: No space left on device; make room and run the command again\n"


def test_a_reader_that_goes_away_ends_the_command_in_silence(tokenizer: Path, tmp_path: Path, run_bash: RunCli) -> None:
    text = tmp_path / "text.txt"
    text.write_text(english(5000))
    for command in (f"encode {tokenizer} {text} --lines", f"encode {tokenizer} {text} --json --lines"):
        result = run_bash(f"gptcli {command} | head -1; exit ${{PIPESTATUS[0]}}")
        assert (result.code, result.err) == (141, "")
        assert result.out.count(b"\n") == 1


def test_a_closed_stdout_gives_no_traceback(tokenizer: Path, run_bash: RunCli) -> None:
    for command in (f"gptcli encode {tokenizer}", f"gptcli count {tokenizer}", "gptcli --version"):
        result = run_bash(f"echo text | {command} >&-")
        assert result.code == 1
        assert re.fullmatch(r"gptcli( encode| count)?: error: stdout: Bad file descriptor\n", result.err)


def test_a_closed_stderr_stops_no_work(tokenizer: Path, run_bash: RunCli) -> None:
    result = run_bash(f"echo text | gptcli encode {tokenizer} 2>&-")
    assert result.code == 0
    assert result.out.strip()
    assert run_bash("gptcli encode none.json 2>&-").code == 2


# --------------------------------------------------------------------------------------------------------- interaction


@pytest.mark.parametrize("command", ["encode", "decode", "count"])
def test_a_terminal_as_stdin_is_refused_and_not_waited_for(command: str, tokenizer: Path, session_cache: Path) -> None:
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            [*GPTCLI, command, str(tokenizer)],
            stdin=follower,
            capture_output=True,
            text=True,
            timeout=30,
            env=environment(session_cache),
            check=False,
        )
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 2
    assert done.stderr.startswith(f"gptcli {command}: error: stdin is a terminal; ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_while_modules_are_loaded_is_one_line(run_cli: RunCli) -> None:
    early = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "gptcli.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from gptcli.__main__ import main
main()
"""
    result = run_cli("--version", python=[sys.executable, "-c", early])
    assert (result.code, result.out, result.err) == (130, b"", "gptcli: interrupted\n")


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "te")])
def test_a_signal_ends_a_filter_with_one_line(
    number: int, code: int, word: str, tokenizer: Path, session_cache: Path
) -> None:
    process = subprocess.Popen(
        [*GPTCLI, "decode", str(tokenizer), "--lines"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(session_cache),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"72\n")
    process.stdin.flush()
    assert process.stdout.readline()  # it is at work now, and waits for the next line
    time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.decode().startswith(f"gptcli decode: {word}")
    assert err.count(b"\n") == 1
