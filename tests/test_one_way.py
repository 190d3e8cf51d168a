"""What the package does in one place only: renaming files, digests, standard errors."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "circuitlab"
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}


def renames(source: str) -> Iterator[int]:
    """Lines that give a file or folder another name, or make a temporary one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if "tempfile" in names or (names & {"move"} and "shutil" in names):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, called = getattr(node.func.value, "id", ""), node.func.attr
            system = owner in ("os", "shutil") and called in ("rename", "replace", "renames", "move")
            # A path's method has one argument; str.replace has two, and a data frame's rename has keywords.
            if system or (called in ("rename", "replace") and len(node.args) == 1 and not node.keywords):
                yield node.lineno


def digests(source: str) -> Iterator[int]:
    """Lines that import hashlib."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if "hashlib" in names or (isinstance(node, ast.ImportFrom) and node.module == "hashlib"):
            yield node.lineno


def sample_variances(source: str) -> Iterator[int]:
    """Lines that take a variance or standard deviation of a sample, as standard errors do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "ddof":
            yield node.value.lineno


RULES = {
    "outputs/whole.py": (renames, "import os\nos.replace(a, b)\n", "'a'.replace('b', 'c')\n"),
    "digests.py": (digests, "from hashlib import sha256\n", "from circuitlab.digests import sha256\n"),
    "stats.py": (sample_variances, "values.std(ddof=1)\n", "values.std()\n"),
}


@pytest.mark.parametrize("home", RULES)
def test_one_module_does_it(home: str):
    find, _, _ = RULES[home]
    assert {name for name, source in SOURCES.items() if any(find(source))} == {home}


@pytest.mark.parametrize("home", RULES)
def test_the_search_finds_what_it_is_for_and_nothing_else(home: str):
    find, guilty, innocent = RULES[home]
    assert list(find(guilty))
    assert not list(find(innocent))


@pytest.mark.parametrize("guilty", ["import tempfile\n", "path.rename(other)\n", "path.replace(other)\n"])
def test_other_ways_to_rename_are_found_too(guilty: str):
    assert list(renames(guilty))
