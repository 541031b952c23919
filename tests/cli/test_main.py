"""What the command line does where the machine is not as it wants it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import RunCli, Tiny, environment

from gptcli.cli.main import COMMANDS, cli

WINDOWS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "readline", "pty"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
for name in ("fcntl", "resource"):
    sys.modules.pop(name, None)
sys.platform = "win32"
"""


def test_windows_is_told_of_wsl_in_one_line(run_cli: RunCli) -> None:
    result = run_cli("--help", python=[sys.executable, "-c", WINDOWS + "from gptcli.__main__ import main; main()"])
    assert result.code == 1
    assert result.out == b""
    (line,) = result.err.splitlines()
    assert line.startswith("gptcli: error: Windows is not supported; run gptcli in WSL")
    result = run_cli(python=[sys.executable, "-c", WINDOWS + "import gptcli.base"])
    assert "ImportError: gptcli runs on Linux and macOS; on Windows run it in WSL" in result.err.splitlines()[-1]


def test_help_imports_no_command_and_lists_what_each_says_of_itself() -> None:
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.help is not None
        assert " ".join(command.help.split()).startswith(line), name
    code = "import sys; from gptcli.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert "gptcli.cli.commands" not in done.stderr


def test_a_profiler_gets_its_file_where_gptcli_is_debugged(tiny: Tiny, run_cli: RunCli, tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    python = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "gptcli"]
    assert run_cli("count", tiny.tokenizer, tiny.corpus, python=python, env={"GPTCLI_DEBUG": "1"}).code == 0
    assert profile.stat().st_size > 1000


def test_without_a_home_the_key_for_another_cache_is_named(tiny: Tiny, tmp_path: Path, session_cache: Path) -> None:
    mend = "set data.cache_dir or XDG_CACHE_HOME to a directory where you may write"
    command = [
        sys.executable,
        "-m",
        "gptcli",
        "pretrain",
        str(tiny.run_file),
        "-s",
        f"run_dir={tmp_path / 'run'}",
        "-q",
    ]
    (tmp_path / "file").touch()
    for home in ("/proc/nowhere", str(tmp_path / "file")):
        env = {**environment(session_cache), "HOME": home, "XDG_CACHE_HOME": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"gptcli pretrain: error: {home}")
        assert line.endswith(mend)
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "run"}
    code = "import os; os.environ.pop('HOME', 0); os.environ.pop('XDG_CACHE_HOME', 0); import pwd\n"
    code += "def unknown(uid): raise KeyError(uid)\n"
    code += "pwd.getpwuid = unknown; from gptcli.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *command[3:]], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"gptcli pretrain: error: data.cache_dir: there is no home directory to keep prepared data in; {mend}\n"
    )


RAISE = """
import sys
from gptcli.cli import main
from gptcli.cli.commands import runs, tokens
def broken(*arguments, **named):
    raise {error}
main.cli.invoke = broken
sys.argv[1:] = sys.argv[1:]
main.main()
"""


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("generate", "MemoryError()", "out of memory; lower --batch-size or the length of the text"),
        ("count", "MemoryError()", "out of memory; raise the limit (ulimit -v"),
        ("pretrain", "RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", "lower train.micro_batch_size"),
        ("train-tokenizer", "MemoryError()", "out of memory; lower --max-bytes"),
        ("runs", "ImportError('libtorch.so: failed to map segment from shared object')", "raise the limit (ulimit -v"),
        ("pretrain", f"OSError({errno.ENOMEM}, 'Cannot allocate memory')", "out of memory; lower train.micro"),
        ("count", f"OSError({errno.EMFILE}, 'Too many open files', 'x')", "x: Too many open files; raise the limit of"),
        ("eval-harness", "OSError('HTTPSConnectionPool: no route')", "error: HTTPSConnectionPool: no route"),
        ("count", f"OSError({errno.ENOLCK}, 'No locks available')", "error: No locks available"),
        ("count", f"OSError({errno.ENOSPC}, 'No space left on device')", "error: stdout: No space left on device"),
    ],
)  # fmt: skip
def test_an_error_names_its_place_and_advice_that_the_command_has(
    command: str, error: str, words: str, run_cli: RunCli
) -> None:
    result = run_cli(command, python=[sys.executable, "-c", RAISE.format(error=error)])
    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith(f"gptcli {command}: error: ")
    assert words in line
    assert "stdout" not in line or "stdout" in words


@pytest.mark.parametrize("kib", [60_000, 100_000, 200_000])
@pytest.mark.parametrize("command", ["train-tokenizer corpus.txt -o tok.json", "prepare corpus.txt -t tok.json -o p"])
def test_a_small_address_space_is_told_before_libraries_fail(command: str, kib: int, session_cache: Path) -> None:
    line = f"ulimit -v {kib} && exec {sys.executable} -m gptcli {command}"
    ended = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, env=environment(session_cache), timeout=60
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    words = "out of memory; raise the limit (ulimit -v, or that of the container), or close other programs"
    assert ended.stderr.splitlines() == [f"gptcli {command.split()[0]}: error: {words}"]


@pytest.mark.parametrize("number", [15, 1, 10, 12, 24])
def test_a_signal_outside_of_training_ends_a_command_with_its_code(
    number: int, tiny: Tiny, session_cache: Path
) -> None:
    command = [sys.executable, "-m", "gptcli", "encode", str(tiny.tokenizer), "-"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(session_cache),
    )
    assert process.stdin is not None
    process.stdin.write(b"text\n" * 400_000)  # more than pipes hold: it is at work when this has been written
    process.stdin.flush()
    os.kill(process.pid, number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err == b"gptcli encode: terminated\n"
