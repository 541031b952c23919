"""Files of text and what is read of them, for tests."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from gptcli.data import blocks, jsonl, records, sources, split
from gptcli.data import text as text_module
from gptcli.data.text import (
    Piece,
    Source,
    TextOptions,
    find_sources,
    read_pieces,
)

UTF8 = TextOptions()
FEW = settings(max_examples=100, deadline=None)


def set_limit(monkeypatch: pytest.MonkeyPatch, name: str, limit: int) -> None:
    """In every module that has it."""
    for module in (blocks, jsonl, records, sources, split, text_module):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, limit)


def find_one(path: Path | str, options: TextOptions = UTF8) -> Source:
    (source,) = find_sources([str(path)], options)
    return source


def pieces_of(path: Path | str, options: TextOptions = UTF8) -> list[Piece]:
    return list(read_pieces(find_one(path, options), options))


def documents_of(path: Path | str, options: TextOptions = UTF8) -> list[str]:
    documents: list[str] = []
    for piece in pieces_of(path, options):
        if piece.starts_document:
            documents.append(piece.text)
        elif piece.text:
            documents[-1] += piece.text
    return documents


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def in_subprocess(code: str, stdin: bytes | int) -> subprocess.CompletedProcess[bytes]:
    code = "from gptcli.data.text import *; from gptcli.base.errors import *\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", code]
    given: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=20, **given)
