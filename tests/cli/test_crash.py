"""The unexpected: one line, the path of a report that says all, and nothing on stdout."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from conftest import RunCli

BUG = r"""
import sys
from gptcli.cli import main
from gptcli.config import yaml_file
def broken(*arguments, **named):
    raise ZeroDivisionError("a bug\x1b[31m\nof two lines")
yaml_file.read = broken
sys.argv[1:] = ["config", "check", "run.yaml"]
main.main()
"""


def test_a_bug_is_one_line_with_the_path_of_a_report(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "run.yaml").write_text("run_dir: somewhere\n")
    cache = tmp_path / "cache"
    result = run_cli(python=[sys.executable, "-c", BUG], cwd=tmp_path, env={"XDG_CACHE_HOME": str(cache)})
    assert (result.code, result.out) == (70, b""), result.err
    (line,) = result.err.splitlines()
    match = re.fullmatch(
        r"gptcli config: error: ZeroDivisionError: a bug\\x1b\[31m of two lines; "
        r"this is a bug in gptcli, please report it with (.+)",
        line,
    )
    assert match, line
    report = Path(match[1])
    assert report.parent == cache / "gptcli" / "crashes"
    text = report.read_text()
    for part in (
        "gptcli 0.",
        "Python 3.",
        "torch 2.",
        "['config', 'check', 'run.yaml']",
        "run_dir: somewhere",
        "broken",
    ):
        assert part in text, part


def test_a_bug_where_no_report_can_be_written_is_one_line_too(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file")
    program = "import tempfile; tempfile.gettempdir = lambda: '/proc/none'\n" + BUG
    result = run_cli(python=[sys.executable, "-c", program], cwd=tmp_path, env={"XDG_CACHE_HOME": nowhere})
    assert result.code == 70
    assert result.err.splitlines()[0].endswith("this is a bug in gptcli, GPTCLI_DEBUG=1 shows where")
