"""The direction of imports, and what must not be there: commands -> runs -> loop, metrics, engine -> config."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptcli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# module or folder -> what of gptcli it may not import, at the top or inside of a function
FORBIDDEN = {
    "errors": {""},
    "display": {""},
    "report": {""},
    "functional": {""},
    "hardware.accelerators": {""},
    "amounts": {""},
    "observe": {"config", "model", "data", "runs", "console", "checkpoint"},
    "hardware.memory": {"data", "train", "runs", "console", "checkpoint"},
    "hardware.machine": {"config", "model", "data", "runs", "console", "runtime"},
    "loss": {""},
    "generation.sample": {"model", "data", "console", "runs", "train", "generation.engine"},
    "config": {"configfile", "console", "data", "model", "runs", "commands"},
    "configfile": {"console", "data", "model", "runs", "commands", "train"},
    "fsio": {"config", "console", "data", "model", "runs"},
    "tensors": {"config", "model", "optim", "checkpoint", "train", "runs", "console"},
    "attention": {"model", "data", "runs", "console"},
    "generation.pattern": {"config", "data", "model", "runs", "console", "generation.engine"},
    "generation.automaton": {"config", "data", "model", "runs", "console", "generation.engine"},
    "generation.cache": {"model", "data", "runs", "console", "generation.engine"},
    "generation.slots": {"model", "data", "runs", "console", "generation.engine"},
    "generation.weights": {"data", "train", "runs", "console", "generation.engine"},
    "model": {"data", "optim", "loss", "train", "checkpoint", "runs", "console", "generation.engine"},
    "optim": {"model", "data", "train", "runs", "console"},
    "data": {"model", "train", "optim", "runs", "console", "checkpoint", "generation.engine"},
    "tasks": {"model", "train", "optim", "runs", "console", "checkpoint", "generation.engine"},
    "checkpoint": {"train", "runs", "console", "generation.engine"},
    "scoring": {"train", "runs", "console", "generation.engine", "metrics"},
    "metrics": {"train", "runs", "console", "generation.engine"},
    "evaluation": {"train", "runs", "console", "commands", "checkpoint"},
    "evaluation.harness": {"train", "runs", "console", "commands"},
    "interop": {"train", "generation.engine", "metrics", "runs", "console"},
    "generation.engine": {"train", "runs", "console"},
    "train": {"runs", "console", "commands", "generation.engine"},
    "runs": {"console", "commands", "cli"},
    "console": {"runs", "model", "train", "commands", "data"},
}


def imports(path: Path) -> set[str]:
    """Dotted names below gptcli that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gptcli":
            module = (node.module or "").removeprefix("gptcli").lstrip(".")
            found |= {module} if module else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("gptcli.") for a in node.names if a.name.startswith("gptcli.")}
    return found


def within(name: str, part: str) -> bool:
    """Whether a module is `part` or lies in it; "" is all of gptcli but two modules that everything may use."""
    return name not in ("errors", "display") if part == "" else f"{name}.".startswith(f"{part}.")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    name = name_of(path)
    forbidden = [where for part, banned in FORBIDDEN.items() if within(name, part) for where in banned]
    for imported in imports(path):
        assert not [where for where in forbidden if within(imported, where)], imported


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_unpickles_evaluates_or_loads_yaml_objects(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "yaml.load", "pickle.load", "pickle.loads"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_console_prints(path: Path) -> None:
    if name_of(path) in ("console", "cli"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"print", "click.echo", "sys.stdout.write", "sys.stderr.write"}


def test_the_command_line_is_there_without_torch() -> None:
    code = "import sys; from gptcli.cli import *; [cli.get_command(None, name) for name in COMMANDS]"
    code += "; print('torch' in sys.modules, 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"
