"""Print figures of the shape of the code: its size, long functions and files, floors and imports against the order.

    python tests/bench/structure.py [DIRECTORY of the package, default gptcli/ beside tests/] [--json]

A module's floor is the length of the longest chain of imports below it, those for types alone left out. Packages are in
the order of tests/test_architecture.py; of a tree with other packages only pairs that import each other are counted.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ORDER = "base config device data model train generate evaluate tasks interop observe api cli".split()
LONG_FILE, LONG_FUNCTION = 400, 60
VERBS = frozenset(
    """accept add adopt advance align allocate allow announce answer append apply ask assemble audit average begin
    bind bring build call cap carry cast change check choose classify clean clear clip close collect colour combine
    commit compare compile complete compose compute concatenate connect continue convert copy count create cut decide
    declare decode delete describe discard divide do download draw drop dump embed empty encode end ensure estimate
    evaluate exchange exclude execute expand expect explain export extract fall feed fetch fill filter find fine-tune
    finish fit fold follow forget format free freeze generate get give go group grow guess handle hash have hide hold
    identify ignore import increase index initialize insert inspect interpolate iterate join judge keep label lay
    learn leave let limit list listen load lock log look lower make map mark mask match measure meet merge mix move
    name normalize note offer open orthogonalize pack pad parse partition pass pause perform pick place plan plant
    plot point predict prefer prepare print probe process prune publish put quantize queue raise read rebuild receive
    record reduce refuse release remember remove rename render reopen repeat replace replay report represent require
    reserve reset resolve restore resume return rotate round run sample save scale scan schedule score search seed
    select send separate serve set shard share shorten show skip sort spell split spread stand start state stop store
    stream strip subtract suggest sum summarize swap switch take talk tell test tie time tokenize train transform
    translate trim truncate try turn undo unpack update upload use validate verify wait walk warn watch widen wrap
    write yield""".split()
)


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a module, without blocks that are for type checkers alone."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def imported(tree: ast.AST, package: str, modules: set[str]) -> set[str]:
    """Return the modules of the package that a module imports, at its top or inside of a function."""
    found: set[str] = set()
    for node in runtime_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == package}
    return found & modules


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """Return every module's floor; modules that import each other share the first floor found for one of them."""
    found: dict[str, int] = {}

    def floor(module: str, above: frozenset[str]) -> int:
        if module not in found:
            below = (floor(name, above | {module}) for name in imports[module] - above - {module})
            found[module] = 1 + max(below, default=-1)
        return found[module]

    for module in imports:
        floor(module, frozenset())
    return found


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def figures(root: Path) -> dict[str, Any]:
    """Return the figures of the package in the directory `root`."""
    texts = {path: path.read_text() for path in sorted(root.rglob("*.py"))}
    names = {path: ".".join((root.name, *path.relative_to(root).with_suffix("").parts)) for path in texts}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    modules = set(names.values())
    imports = {names[path]: imported(tree, root.name, modules) - {root.name} for path, tree in trees.items()}
    lengths = {str(path.relative_to(root)): len(text.splitlines()) for path, text in texts.items()}

    functions: dict[str, int] = {}
    documented, verbs, first_words = 0, 0, Counter[str]()
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{path.relative_to(root)}:{node.lineno} {node.name}"] = lines_of(node)
                if text := ast.get_docstring(node):
                    word = text.split(None, 1)[0].strip(".,:;`'\"").lower() if text.strip() else ""
                    documented += 1
                    verbs += word in VERBS
                    first_words[word] += word not in VERBS

    packages = {path.relative_to(root).parts[0] for path in texts if path.parent != root}
    edges = {
        (name.split(".")[1], other.split(".")[1])
        for name, others in imports.items()
        for other in others
        if name != root.name and name.split(".")[1] in packages and other.split(".")[1] in packages
    }
    known = packages <= set(ORDER)
    against = [
        f"{name} -> {other}"
        for name, others in sorted(imports.items())
        for other in sorted(others)
        if known and name.count(".") and name.split(".")[1] in packages
        and (other.split(".")[1] not in ORDER or ORDER.index(name.split(".")[1]) < ORDER.index(other.split(".")[1]))
    ]  # fmt: skip
    by_floor = floors(imports)
    sizes = sorted(functions.values())
    return {
        "files": len(texts),
        "lines": sum(lengths.values()),
        "packages": len(packages),
        "modules outside of a package": sum(path.parent == root and path.name[:2] != "__" for path in texts),
        "files over 400 lines": {name: size for name, size in lengths.items() if size > LONG_FILE},
        "functions": len(functions),
        "lines of a function, median, 9 of 10, longest": [
            statistics.median(sizes), sizes[len(sizes) * 9 // 10], sizes[-1]
        ],
        "functions over 60 lines": {name: size for name, size in functions.items() if size > LONG_FUNCTION},
        "floors": max(by_floor.values()) + 1,
        "imports": sum(map(len, imports.values())),
        "packages that import each other": sorted(f"{a} <-> {b}" for a, b in edges if a < b and (b, a) in edges),
        "imports against the order": against if known else "not in the order of thirteen packages",
        "docstrings of functions": documented,
        "of them begin with a verb": verbs,
        "most frequent other beginnings": dict(first_words.most_common(12)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parents[2] / "gptcli")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = figures(arguments.directory.resolve())
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            value = f"{len(value)}" + "".join(f"\n    {size:>5}  {what}" for what, size in value.items())
        elif isinstance(value, list) and value and isinstance(value[0], str):
            value = f"{len(value)}" + "".join(f"\n    {what}" for what in value)
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or 0
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
