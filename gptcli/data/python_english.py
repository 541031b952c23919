"""Real English that every Python carries: the language reference of `pydoc_data.topics` and the docstrings of the
standard library. Everything is read with ast; nothing is imported or run."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SMALLEST_BYTES = 200  # shorter docstrings are lists of names more than English
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib", "encodings"}


def documents() -> Iterator[str]:
    """Yield every text once: the topics, then a document for each module that has docstrings worth reading."""
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    yield from _topics(library / "pydoc_data" / "topics.py")
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(library).parts):
            texts = [text for text in _docstrings(path) if text not in seen]
            seen.update(texts)
            if texts:
                yield "\n\n".join(texts) + "\n"


def _parse(path: Path) -> ast.Module:
    """Return the syntax tree, empty for the files of the test suite that are broken on purpose."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def _topics(path: Path) -> Iterator[str]:
    """Yield the values of the dictionary `topics`, as text."""
    for node in ast.walk(_parse(path)) if path.is_file() else ():
        if isinstance(node, ast.Dict):
            for value in node.values:
                try:
                    text = ast.literal_eval(value)
                except ValueError:
                    continue
                if isinstance(text, str) and len(text) >= SMALLEST_BYTES:
                    yield text.strip() + "\n"


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(_parse(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) >= SMALLEST_BYTES:
                yield inspect.cleandoc(text)
