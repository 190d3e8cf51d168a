"""Which module may import which: the contracts in pyproject.toml, and the two things they cannot say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW_ZERO = ("parts", "axes", "errors", "references")
MODULES = sorted((ROOT / "circuitlab").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_the_contracts_of_pyproject_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ROW_ZERO)
def test_row_zero_needs_the_standard_library_only(name):
    outside = top_level(imports(ROOT / "circuitlab" / f"{name}.py")) - set(sys.stdlib_module_names)
    assert outside <= {"circuitlab"}


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_task_module_stands_on_its_own(path):
    """It may use what tasks are made of and the standard library, so that it can be copied and run by its path."""
    allowed = {"circuitlab", "circuitlab.data.example", "circuitlab.data.task", "circuitlab.references"}
    assert {name for name in imports(path) if top_level({name}) - set(sys.stdlib_module_names)} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_prints_and_nothing_star_imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prints = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
    assert not prints or path.parent.name == "cli"
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_readable(path):
    """A module past 400 lines hides a second idea; a function past 60, its docstring apart, hides a step."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert (node.end_lineno or 0) - first.lineno < 60, f"{path.name}: {node.name}"
