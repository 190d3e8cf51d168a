"""The public surface: what is importable, and what importing costs."""

import subprocess
import sys
from importlib import import_module

import pytest

import circuitlab
from circuitlab import errors

HEAVY = ("torch", "transformer_lens", "transformers", "matplotlib", "networkx", "pandas", "scipy", "numpy", "jax")


def test_all_is_sorted_and_complete():
    assert circuitlab.__all__ == sorted(circuitlab.__all__)
    assert set(circuitlab.__all__) <= set(dir(circuitlab))


@pytest.mark.parametrize("name", circuitlab.__all__)
def test_every_public_name_is_importable_and_documented(name):
    value = getattr(circuitlab, name)
    assert name == "__version__" or value.__doc__


@pytest.mark.parametrize(("name", "home"), circuitlab._HOMES.items())
def test_names_come_from_the_module_that_defines_them(name, home):
    value = getattr(import_module(home), name)
    assert getattr(value, "__module__", home) == home


def test_every_error_is_public():
    tree = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.CircuitLabError)]
    assert {error.__name__ for error in tree} <= set(circuitlab.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_thing"):
        circuitlab.no_such_thing  # noqa: B018


def loaded_by(code: str) -> set[str]:
    """Heavy packages in memory after some code has run in a fresh interpreter."""
    report = f"{code}\nimport sys; print('loaded', *sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import circuitlab",
        "import circuitlab as c; dir(c); c.CircuitLabError; c.Edge; c.load_task('name-throw')",
        "from circuitlab.cli import main; assert main(['--help']) == 0",
        "from circuitlab.cli import main; assert main(['discover', '--help']) == 0",
        "from circuitlab.cli import main; assert main(['tasks']) == 0",
        "from circuitlab.cli import main; assert main(['tasks', 'show', 'name-throw']) == 0",
        "from circuitlab.cli import main; assert main(['models']) == 0",
        "from circuitlab.cli import main; assert main(['cite', 'name-throw']) == 0",
        "from circuitlab.cli import main; assert main(['discover', 'no-such-task']) == 2",
    ],
)
def test_light_commands_load_nothing_heavy(code):
    assert loaded_by(code) == set()


def test_the_check_above_can_fail():
    assert loaded_by("import numpy") == {"numpy"}


def test_importing_changes_nothing_of_the_process():
    code = (
        "import sys, signal, warnings, logging, os\n"
        "state = lambda: (sys.excepthook, signal.getsignal(signal.SIGTERM), list(warnings.filters),\n"
        "                 logging.getLogger().handlers[:], dict(os.environ))\n"
        "before = state(); import circuitlab; circuitlab.load_task; circuitlab.Edge; assert state() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
