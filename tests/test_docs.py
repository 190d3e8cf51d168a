"""Whatever README and docs/ show as code runs, and the tables in them say what the code says."""

import ast
import doctest
import inspect
import pkgutil
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from commands import run_circuitlab

import circuitlab
from circuitlab import axes, errors

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
ALL_FENCES = re.compile(r"^```", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
MODULES = [module.name for module in pkgutil.walk_packages(circuitlab.__path__, "circuitlab.")]
page_by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Block:
    """One fenced block; a title is the name of the file that the reader is to save it as."""

    language: str
    title: str | None
    body: str


def blocks(page: Path) -> list[Block]:
    return [Block(**found.groupdict()) for found in FENCE.finditer(page.read_text(encoding="utf-8"))]


def table(page: Path, first_column: str) -> list[list[str]]:
    """Cells below the header that starts with this column name."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    body = lines[start + 2 :]
    end = next((i for i, line in enumerate(body) if not line.startswith("|")), len(body))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body[:end]]


def first_column(page: Path, header: str) -> list[str]:
    return [row[0].strip("`") for row in table(page, header)]


@page_by_page
def test_every_fence_is_understood(page):
    assert len(ALL_FENCES.findall(page.read_text(encoding="utf-8"))) == 2 * len(blocks(page))
    assert {block.language for block in blocks(page)} <= {"python", "console", "text", ""}


@page_by_page
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """From top to bottom, as a reader would: titled blocks are saved, Python runs, commands are typed.

    The README is run in a new shell, in `test_readme.py`.
    """
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.body)
        elif block.language == "python":
            exec(compile(block.body, page.name, "exec"), names)
        elif block.language == "console":
            for line, shown in commands(block.body):
                check_command(line, shown)


def commands(session: str) -> Iterator[tuple[str, str]]:
    """Each `$ command` of a console block, with the output that the page shows below it."""
    for part in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
        line, _, shown = part.partition("\n")
        yield line, shown


def check_command(line: str, shown: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[0] == "circuitlab":
        model = words[words.index("--model") + 1] if "--model" in words else "bundled"
        if model != "bundled":  # needs a network: that the command is spelt right is all that can be seen here
            words = [*words[: words.index("--model")], "--help"]
        done = run_circuitlab(*words[1:], cwd=Path.cwd())
        assert done.code == 0, f"{line}\n{done.err}"
        if model == "bundled":
            assert_shows(done.out, shown)
    else:
        assert words[0] in ("git", "cd", "pip", "python3", ".venv/bin/pip", ".venv/bin/python"), line


def assert_shows(real: str, shown: str) -> None:
    """Every line that the page shows was printed, whatever its numbers."""
    printed = {masked(line) for line in real.splitlines()}
    for line in shown.splitlines():
        assert masked(line) in printed, f"not printed any more: {line!r}\n{real}"


def masked(line: str) -> str:
    return " ".join(re.sub(r"-?\d[\d.,]*", "#", line).split())


def test_the_checks_above_can_fail(tmp_path):
    with pytest.raises(AssertionError):
        check_command("circuitlab no-such-command", "")
    with pytest.raises(AssertionError):
        assert_shows("faithfulness 0.9\n", "loss 0.9\n")


@pytest.fixture(scope="module")
def load_once():
    """`load_model` for the examples, which loads each model once."""
    return cache(circuitlab.load_model)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name, load_once, monkeypatch):
    monkeypatch.setattr(circuitlab, "load_model", load_once)
    assert doctest.testmod(import_module(name)).failed == 0


PACKAGE = Path(circuitlab.__file__).parent
SECTIONS = ("Returns", "Raises")
# Docstrings of commands are their help, which users read.
EXEMPT = "cli"


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions, and public methods of public classes, by name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.FunctionDef):
                yield node.name, node
            else:
                yield from ((f"{node.name}.{name}", one) for name, one in functions(node))


def lacking(function: ast.FunctionDef) -> list[str]:
    """Sections that a docstring lacks: Returns for what is returned, Raises for a `raise` of the function's own."""
    text = ast.get_docstring(function) or ""
    inner = [node for node in ast.walk(function) if isinstance(node, ast.FunctionDef | ast.Lambda) and node != function]
    nested = {id(node) for one in inner for node in ast.walk(one)}
    body = [node for node in ast.walk(function) if id(node) not in nested]
    decorators = {ast.unparse(one) for one in function.decorator_list}
    gives = any(isinstance(n, ast.Return) and n.value and ast.unparse(n.value) != "None" for n in body)
    if ast.unparse(function.body[-1]) == "...":  # a member of a protocol
        gives = function.returns is not None and ast.unparse(function.returns) != "None"
    wants = {
        "Returns": gives and not decorators & {"property", "cached_property", "overload"},
        "Raises": any(isinstance(node, ast.Raise) and node.exc for node in body),
    }
    return [name for name in SECTIONS if wants[name] and f"{name}:" not in text]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_say_what_comes_back_and_what_is_raised(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == EXEMPT or any(part.startswith("_") and part != "__init__" for part in parts):
        return
    found = {name: lacking(function) for name, function in functions(ast.parse(path.read_text(encoding="utf-8")))}
    assert {name: sections for name, sections in found.items() if sections} == {}


def test_every_exported_name_has_an_example():
    """Errors aside, which docs/errors.md lists."""
    values = [getattr(circuitlab, name) for name in circuitlab.__all__ if name != "__version__"]
    errors = [one for one in values if isinstance(one, type) and issubclass(one, circuitlab.CircuitLabError)]
    assert [one.__name__ for one in values if one not in errors and ">>>" not in (one.__doc__ or "")] == []
    assert ">>>" in circuitlab.CircuitLabError.__doc__


def test_every_metric_has_its_reference():
    from circuitlab.metrics.base import METRICS

    for metric in METRICS.values():
        assert "Returns:" in metric.function.__doc__, metric.name
        assert re.search(r"References:\n.*arXiv:\d", metric.function.__doc__), metric.name


def test_the_docstring_checks_can_fail():
    found = dict(functions(ast.parse("def f(x):\n    '''Text.'''\n    if x:\n        raise E\n    return x")))
    assert lacking(found["f"]) == ["Returns", "Raises"]
    assert lacking(dict(functions(ast.parse("def f(x):\n    '''Text.'''\n    x()")))["f"]) == []
    member = "class M(Protocol):\n    def f(self) -> int:\n        '''Text.'''\n        ..."
    assert lacking(dict(functions(ast.parse(member)))["M.f"]) == ["Returns"]
    assert lacking(dict(functions(ast.parse(member.replace("int", "None"))))["M.f"]) == []


def test_conventions_list_the_axes():
    assert [(word.strip("`"), means) for word, means in table(ROOT / "docs" / "conventions.md", "Word")] == list(
        axes.AXES.items()
    )


def test_the_error_page_mirrors_the_error_tree():
    tree = [v for v in vars(errors).values() if inspect.isclass(v) and issubclass(v, errors.CircuitLabError)]
    expected = [
        [
            *(f"`{e.__name__}`", f"`{e.__bases__[0].__name__}`", inspect.getdoc(e).splitlines()[0]),
            ", ".join(f"`{base.__name__}`" for base in e.__bases__[1:]),
        ]
        for e in tree
    ]
    assert [row[:4] for row in table(ROOT / "docs" / "errors.md", "Error")] == expected


def test_readme_opens_with_the_two_commands():
    first = blocks(ROOT / "README.md")[0]
    assert [line for line, _ in commands(first.body)] == ["make demo", "make test"]


def test_readme_lists_what_there_is():
    from circuitlab.data.registry import is_bundled, task_names
    from circuitlab.discovery.scoring import METHODS
    from circuitlab.metrics import names
    from circuitlab.patching.sweeps.sites import SITES

    readme = ROOT / "README.md"
    assert first_column(readme, "Task") == sorted(filter(is_bundled, task_names()))
    assert first_column(readme, "Method") == list(METHODS)
    assert [name for cell in first_column(readme, "Site") for name in cell.split("`, `")] == list(SITES)
    assert first_column(readme, "Metric") == list(names())


def test_the_map_names_every_module():
    """docs/architecture.md has a place for every module of the library, and names none that is gone."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {
        path.parent if path.parent.name != "circuitlab" else path for path in (ROOT / "circuitlab").rglob("*.py")
    }
    for path in folders - {ROOT / "circuitlab" / "__init__.py"}:
        name = f"{path.name}/" if path.is_dir() else path.name
        assert f"`{name}" in text, name
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text):
        assert (ROOT / name).is_file() or (ROOT / "circuitlab" / name).is_file(), name


def test_the_readme_task_file_is_about_thirty_lines():
    titled = next(block for block in blocks(ROOT / "README.md") if block.title)
    code = [line for line in titled.body.splitlines() if line.strip()]
    assert len(code) <= 36
    ast.parse(titled.body)
