"""What is shipped: versions, pins, the wheel's contents, and the main job from a wheel installed elsewhere."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import circuitlab
from circuitlab import Example, Task
from circuitlab.data import citation

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def command(*args: object, cwd: Path, **env: str) -> str:
    """Run a command to its end and return its output; its stderr is in the failure."""
    done = subprocess.run(
        [str(arg) for arg in args],
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def packages_on_disk() -> set[str]:
    """Every folder of Python files under circuitlab/, and tasks/ under its installed name."""
    found = {".".join(path.relative_to(ROOT).parts[:-1]) for path in (ROOT / "circuitlab").rglob("*.py")}
    return found | {"circuitlab.tasks"}


def shipped_files() -> set[str]:
    """Paths in the wheel of everything that belongs in it."""
    inside = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "circuitlab").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return inside | {f"circuitlab/{path.relative_to(ROOT)}" for path in (ROOT / "tasks").glob("*.py")}


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-")))


def test_one_version_everywhere():
    cff = (ROOT / "CITATION.cff").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {circuitlab.__version__}\n" in cff
    assert f"## {circuitlab.__version__}" in changelog
    assert version("circuitlab") == circuitlab.__version__, "installed metadata is old: pip install -e ."


def test_the_citation_file_says_what_cite_says():
    cff = (ROOT / "CITATION.cff").read_text()
    assert f'title: "{citation.LIBRARY_TITLE}"' in cff
    assert f'- name: "{citation.LIBRARY_AUTHOR}"' in cff
    assert f"date-released: {citation.LIBRARY_YEAR}-" in cff


def test_every_method_has_the_source_that_it_cites():
    from circuitlab.discovery.scoring import METHODS

    assert {name: sources[0] for name, sources in citation.METHOD_SOURCES.items()} == {
        name: method.source for name, method in METHODS.items()
    }


def test_special_characters_are_escaped_for_latex():
    task = Task(
        name="50%_of_{x}", version="1", summary="A & B cost $1 #2", draw=lambda rng: Example("a", "b", "c", "d")
    )
    entry = circuitlab.cite(task).split("\n\n")[1]
    assert r"50\%\_of\_\{x\}" in entry
    assert r"A \& B cost \$1 \#2" in entry
    assert "@misc{circuitlab-50-of-x-," in entry
    assert "author" not in entry, "the author of a user's task is not ours to name"


def test_every_package_is_listed():
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_import_is_a_declared_dependency():
    """What the library imports at all, it names in pyproject.toml; and it names nothing that it does not use."""
    used = set[str]()
    for path in [*(ROOT / "circuitlab").rglob("*.py"), *(ROOT / "tasks").glob("*.py")]:
        used |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    outside = used - set(sys.stdlib_module_names) - {"circuitlab"}
    outside = {{"yaml": "pyyaml"}.get(name, name) for name in outside}  # what a package is imported as, and its name
    declared = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    assert outside == declared


def test_the_lock_files_are_what_lock_py_writes_here():
    spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    needed = lock.closure([Requirement("circuitlab")])
    assert needed <= set(locked("locked.txt"))
    assert lock.closure([Requirement("circuitlab[dev]")]) - needed <= set(locked("dev.txt"))


@pytest.mark.parametrize("file", ["locked.txt", "dev.txt"])
def test_installed_versions_are_the_locked_ones(file):
    for name, pin in locked(file).items():
        assert Version(distribution(name).version).public == pin, f"{name}: make clean, then make test"


def test_pins_satisfy_the_declared_ranges():
    pins = locked("locked.txt") | locked("dev.txt")
    for line in [*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["dev"]]:
        need = Requirement(line)
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), line


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source distribution, built from the checkout."""
    out = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_both_folders_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == shipped_files()
    assert {"circuitlab/report/templates/report.html.j2", "circuitlab/report/templates/page.css"} <= names


def test_the_wheel_carries_licence_and_command(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"circuitlab-{circuitlab.__version__}.dist-info"
    assert "circuitlab = circuitlab.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert archive.read(f"{info}/licenses/LICENSE").decode() == (ROOT / "LICENSE").read_text()


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """A fresh environment outside the checkout that holds the wheel; its dependencies are those installed here.

    A path in a .pth file is searched for packages, but .pth files found there are not read, so this environment does
    not see the checkout's editable install.
    """
    home = tmp_path_factory.mktemp("elsewhere")
    command(sys.executable, "-m", "venv", home / "venv", cwd=home)
    python = home / "venv" / "bin" / "python"
    site = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    command(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    here = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in here))
    return home


def test_the_main_job_runs_from_the_wheel(elsewhere):
    binaries = elsewhere / "venv" / "bin"
    where = command(binaries / "python", "-c", "import circuitlab; print(circuitlab.__file__)", cwd=elsewhere)
    assert Path(where.strip()).is_relative_to(elsewhere)
    told = json.loads(
        command(binaries / "circuitlab", "discover", "name-throw", "-n", 16, "--json", "--quiet", cwd=elsewhere)
    )
    assert Path(elsewhere, told["report"]).is_file()
    assert told["n_edges"] < told["n_edges_total"]
    for task in ("gendered-pronouns", "html-tag-closing"):
        assert task in command(binaries / "circuitlab", "tasks", "show", task, cwd=elsewhere)
