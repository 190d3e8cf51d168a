"""Which module may import which: the contracts in pyproject.toml, and what they cannot say."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROW_ZERO = ("parts", "axes", "errors", "references", "plugins", "drawing", "lazy")
MODULES = sorted((ROOT / "circuitlab").rglob("*.py"))
PACKAGES = ("circuitlab", "benchmarks", "tasks", "training")
# They load their public names when these are used, by the one module that imports by a name.
FRONT_DOORS = {"circuitlab", "circuitlab.features", "circuitlab.neurons", "circuitlab.lazy"}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def named_modules() -> dict[str, Path]:
    """Every module of the repository by its dotted name."""
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: Iterable[str]) -> set[str]:
    """Known modules that a source imports anywhere, for type checking too; the deepest that each name reaches."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            deeper = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else node.module or "" for name in deeper.values()}
    return names & set(known)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one import circle; none where there is no circle."""
    try:
        TopologicalSorter({name: targets - {name} for name, targets in graph.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def by_string(source: str, known: Iterable[str]) -> Iterator[int]:
    """Lines that import a module by a string, or name one."""
    for node in ast.walk(ast.parse(source)):
        called = isinstance(node, ast.Call) and (getattr(node.func, "id", "") or getattr(node.func, "attr", ""))
        named = isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value
        if called in ("import_module", "__import__") or (named and node.value in known):
            yield node.lineno


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_the_contracts_of_pyproject_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_and_no_folder_is_in_an_import_circle():
    """The front door of the package apart, which names all others and imports them when they are used."""
    known = named_modules()
    graph = {name: imported(path.read_text(encoding="utf-8"), known) for name, path in known.items()}
    del graph["circuitlab"]
    graph = {name: targets - {"circuitlab"} for name, targets in graph.items()}
    assert circle(graph) == []
    folders: dict[str, set[str]] = {}
    for name, targets in graph.items():
        two_deep = {".".join(target.split(".")[:2]) for target in targets}
        folders.setdefault(".".join(name.split(".")[:2]), set()).update(two_deep)
    assert circle(folders) == []


def test_the_check_above_finds_a_circle():
    sources = {
        "p.low": "def late():\n    from p.mid import x",
        "p.mid": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import high",
        "p.high": "import p.low",
        "p": "",
    }
    found = circle({name: imported(source, sources) for name, source in sources.items()})
    assert set(found) == {"p.low", "p.mid", "p.high"}


def test_no_module_is_imported_by_a_string():
    """But for the names of the front doors, and entry points."""
    known = named_modules()
    sources = {name: path.read_text(encoding="utf-8") for name, path in known.items() if name not in FRONT_DOORS}
    found = {name: lines for name, source in sources.items() if (lines := list(by_string(source, known)))}
    assert found == {}


@pytest.mark.parametrize(
    "source", ["import_module(name)", "importlib.import_module(name)", "__import__(name)", "call('p.low', 'draw')"]
)
def test_the_check_above_finds_an_import_by_string(source):
    assert list(by_string(source, {"p.low"})) == [1]


@pytest.mark.parametrize("name", ROW_ZERO)
def test_row_zero_needs_the_standard_library_only(name):
    outside = top_level(imports(ROOT / "circuitlab" / f"{name}.py")) - set(sys.stdlib_module_names)
    assert outside <= {"circuitlab"}


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_a_task_module_stands_on_its_own(path):
    """It may use what tasks are made of and the standard library, so that it can be copied and run by its path."""
    allowed = {f"circuitlab.data.{name}" for name in ("example", "published", "splits", "task")}
    allowed |= {"circuitlab", "circuitlab.references"}
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
