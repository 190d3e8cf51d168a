"""Parts found by entry point: those of this package, and those that another package adds."""

import ast
import json
import re
from importlib import import_module
from importlib.metadata import EntryPoints
from pathlib import Path

import pytest
from test_viz import texts

from circuitlab import drawing, load_task, plugins, viz
from circuitlab.cli import main
from circuitlab.data.registry import is_bundled, task_names
from circuitlab.errors import ConfigError, TaskFileError, WrongTypeError
from circuitlab.viz.save import new_figure

ROOT = Path(__file__).parent.parent
OTHER = """
from circuitlab import Example, Task
from circuitlab.drawing import shows
from circuitlab.viz.save import new_figure

class Measured:
    pass

@shows("figure", "other_measures:Measured")
def measured(value, title=""):
    figure = new_figure()
    figure.add_axes((0.1, 0.1, 0.8, 0.8)).text(0, 0, title)
    return figure

TASK = Task(name="other-task", version="1", summary="From another package.",
            draw=lambda rng: Example(clean="a b", corrupt="a c", answer=" d", distractor=" e"))
NO_TASK = 3
"""
ENTRIES = """
[circuitlab.tasks]
other-task = other_measures:TASK
name-throw = other_measures:TASK
no-task = other_measures:NO_TASK
gone = other_measures:GONE

[circuitlab.pictures]
other = other_measures
"""


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Another package, installed."""
    (tmp_path / "other_measures.py").write_text(OTHER)
    info = tmp_path / "other_measures-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-measures\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    drawing._load.cache_clear()
    yield
    drawing._load.cache_clear()


def test_every_result_that_can_plot_has_a_picture():
    files = [path for path in (ROOT / "circuitlab").rglob("*.py") if path.parent.name != "viz"]
    classes = [
        node for path in files for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    plots = {c.name: f for c in classes for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "plot"}
    with pytest.raises(WrongTypeError) as error:
        viz.plot(object())
    named = set(re.findall(r"\w+", str(error.value).split("Give one of")[1]))
    figures = [name.partition(":") for view, name in drawing._views if view == "figure"]
    registered = [getattr(import_module(module), cls) for module, _, cls in figures]
    inherited = {base.__name__ for cls in registered for base in cls.__mro__[1:] if "plot" in vars(base)}
    assert {cls.__name__ for cls in registered if callable(getattr(cls, "plot", None))} == named
    # What is not registered draws a part that is.
    for name in set(plots) - inherited - named:
        assert ".plot(" in ast.unparse(plots[name]), name


def test_pictures_are_registered_where_their_classes_are():
    with pytest.raises(WrongTypeError):
        viz.plot(object())
    for _, name in drawing._views:
        module, _, cls = name.partition(":")
        assert isinstance(getattr(import_module(module), cls), type)


def test_a_value_without_a_picture_is_refused():
    with pytest.raises(WrongTypeError, match=r"^int has no figure\. Give one of Areas, AttentionPatterns, "):
        viz.plot(3)


def test_another_package_draws_its_results(other):
    import other_measures  # pyright: ignore[reportMissingImports]

    class Derived(other_measures.Measured):
        pass

    assert "mine" in texts(viz.plot(Derived(), title="mine"))


def test_another_package_adds_tasks(other, capsys):
    assert load_task("other-task").summary == "From another package."
    assert main(["tasks", "show", "other-task"]) == 0
    assert "From another package." in capsys.readouterr().out
    assert {"other-task", "name-throw"} <= set(task_names())
    assert is_bundled("name-throw")
    assert not is_bundled("other-task")


def test_a_broken_package_does_not_hide_the_tasks_of_others(other, capsys):
    assert main(["tasks"]) == 0
    told = capsys.readouterr().out
    assert {"name-throw", "other-task"} <= set(told.split())
    assert re.search(r"gone +of other-measures: 'gone' of circuitlab\.tasks", told)
    assert re.search(r"no-task +of other-measures: task 'no-task', other_measures:NO_TASK, is 3", told)
    assert main(["tasks", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["broken"]) == {"gone", "no-task"}
    assert {"name-throw", "other-task"} <= {task["name"] for task in said["tasks"]}


def test_pictures_of_classes_of_one_name_do_not_collide(other):
    import other_measures  # pyright: ignore[reportMissingImports]

    class Measured:
        pass

    assert "mine" in texts(viz.plot(other_measures.Measured(), title="mine"))
    with pytest.raises(WrongTypeError, match="Measured has no figure"):
        viz.plot(Measured())


def test_a_name_of_ours_cannot_be_taken(other):
    assert load_task("name-throw").name == "name-throw"


def test_what_another_package_lists_must_be_there_and_be_a_task(other):
    with pytest.raises(TaskFileError, match=r"^task 'no-task', other_measures:NO_TASK, is 3; it must be a Task\.$"):
        load_task("no-task")
    with pytest.raises(ConfigError, match=r"^'gone' of circuitlab\.tasks, other_measures:GONE in other-measures, "):
        load_task("gone")


def test_an_installation_older_than_the_code_is_told(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints(()))
    with pytest.raises(ConfigError, match=r"has no entry points 'circuitlab\.tasks'.*pip install -e \."):
        load_task("name-throw")
    assert plugins.installed("circuitlab.methods", ours=False) == {}


def test_a_figure_saves_itself(tmp_path):
    figure = new_figure()
    assert figure.save(tmp_path / "a.png").read_bytes() == viz.figure_bytes(figure, "png")
