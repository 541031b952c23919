"""The order of the packages, which is that of reading, and what must not be there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptcli"
MODULES = sorted(PACKAGE.rglob("*.py"))
ORDER = "base config device data model train generate evaluate tasks interop observe api cli".split()
MAY_PRINT = ("cli.console", "cli.main")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_packages(path: Path) -> set[str]:
    """Packages of gptcli that a module imports, at its top or inside of a function; not for types alone."""
    found = set()
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            first, *rest = (node.module or "").split(".")
            if first == "gptcli":
                found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gptcli.")}
        nodes.extend(ast.iter_child_nodes(node))
    return found - {"__version__"}


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent != PACKAGE], ids=name_of)
def test_a_package_imports_only_those_before_it(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    assert imported_packages(path) <= set(ORDER[: ORDER.index(own) + 1])


def test_every_module_has_a_room() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_unpickles_evaluates_or_loads_yaml_objects(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "yaml.load", "pickle.load", "pickle.loads"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_console_prints(path: Path) -> None:
    if name_of(path) in MAY_PRINT:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"}


def test_the_command_line_is_there_without_torch() -> None:
    code = "import sys; from gptcli.cli.main import *; [cli.get_command(None, name) for name in COMMANDS]"
    code += "; print('torch' in sys.modules, 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
