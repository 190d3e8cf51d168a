"""A run folder of a stranger: nothing of it is run, read from elsewhere, or takes effect, unless the user says so."""

import hashlib
import json
import os
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from runs import TASK, written

from circuitlab import CircuitLabError, RunError, reproduce
from circuitlab.cli import main
from circuitlab.data.run_files import file_inside

MODULE = import_module("circuitlab.discovery.reproduce")
EVIL = "from pathlib import Path\nPath({mark!r}).write_text('ran')\nfrom circuitlab import Example, Task\n" + (
    "TASK = Task(name='own', version='1', summary='x', draw=lambda rng: Example('a b', 'a c', ' d', ' e'))\n"
)


@pytest.fixture(scope="module")
def whole(bundled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(bundled, tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that attacks write; it must not be there afterwards."""
    return tmp_path / "mark"


@pytest.fixture
def again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Running again gives the folder as it was, at once; the tasks that were run are kept."""
    asked: list[Any] = []

    def discover(task: Any, *, out: Path, **settings: Any) -> None:
        asked.append(task)
        shutil.copytree(whole, out)

    monkeypatch.setattr(MODULE, "discover", discover)
    return asked


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of a manifest, places given with double underscores."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for place, value in changes.items():
        inner = manifest
        *parents, last = place.split("__")
        for key in parents:
            inner = inner[key]
        inner[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


def with_task_file(folder: Path, mark: Path, *, listed: bool = True, asked: str = "own.py") -> str:
    """A run of a task file that leaves a mark when it is run; its SHA-256."""
    (folder / "task.py").write_text(EVIL.format(mark=str(mark)))
    digest = hashlib.sha256((folder / "task.py").read_bytes()).hexdigest()
    edit(folder, config__task=asked, config__options={})
    if listed:
        files = json.loads((folder / "manifest.json").read_text())["files"]
        edit(folder, files={**files, "task.py": digest})
    return digest


# ------------------------------------------------------------------------------------------------ code


def test_a_task_file_does_not_run_unless_allowed_and_the_message_names_it(folder, mark, again):
    digest = with_task_file(folder, mark)
    with pytest.raises(RunError) as told:
        reproduce(folder)
    assert not mark.exists()
    for part in (str(folder / "task.py"), digest, "--run-code", "run_code=True", "Read that file first"):
        assert part in str(told.value)
    assert again == []
    reproduce(folder, run_code=True)  # the twin
    assert mark.read_text() == "ran"
    assert again[0].origin == str(folder / "task.py")


def test_the_command_line_says_which_file_it_runs(folder, mark, again, capsys):
    digest = with_task_file(folder, mark)
    assert main(["reproduce", str(folder)]) == 2
    assert not mark.exists()
    assert digest in capsys.readouterr().err
    assert main(["reproduce", str(folder), "--run-code", "--quiet"]) == 1, "the task is another one: not reproduced"
    assert mark.exists()
    first = capsys.readouterr().err.splitlines()[0]
    assert str(folder / "task.py") in first
    assert digest in first


def test_a_file_that_is_not_what_the_manifest_lists_does_not_run(folder, mark, again):
    digest = with_task_file(folder, mark)
    (folder / "task.py").write_text((folder / "task.py").read_text() + "# more\n")
    with pytest.raises(RunError, match=f"is not the file that the run used: its SHA-256 is .*manifest says {digest}"):
        reproduce(folder, run_code=True)
    assert not mark.exists()


def test_a_file_that_the_manifest_does_not_list_does_not_run(folder, mark, again):
    with_task_file(folder, mark, listed=False)
    with pytest.raises(RunError, match="task.py is not listed in the manifest"):
        reproduce(folder, run_code=True)
    assert not mark.exists()


def test_a_built_in_task_stays_built_in_whatever_else_the_folder_holds(folder, mark, again):
    with_task_file(folder, mark, asked=TASK)
    edit(folder, config__options={"contrast": "capital"})
    reproduce(folder, run_code=True)
    assert not mark.exists()
    assert again[0].origin == ""


@pytest.mark.parametrize("run_code", [False, True])
@pytest.mark.parametrize("spelling", ["{0}", "{0}:TASK", "./{1}", "{1}", "~/{1}", f"{TASK}:x/../{{1}}", "{2}/evil", ""])
def test_a_path_in_the_manifest_is_never_loaded(spelling, run_code, folder, mark, tmp_path, monkeypatch, again):
    evil = tmp_path / "evil.py"
    evil.write_text(EVIL.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / TASK).write_text(evil.read_text())
    edit(folder, config__task=spelling.format(evil, evil.name, tmp_path), config__options={})
    with pytest.raises(RunError, match=r"task"):
        reproduce(folder, run_code=run_code)
    assert not mark.exists()
    assert again == []


def test_a_task_file_that_is_a_link_out_of_the_folder_does_not_run(folder, mark, tmp_path, again):
    with_task_file(folder, mark)
    (folder / "task.py").rename(tmp_path / "outside.py")
    (folder / "task.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(RunError, match="symbolic link that leads out of the folder"):
        reproduce(folder, run_code=True)
    assert not mark.exists()


def test_a_task_file_that_ends_the_program_is_no_reproduction(folder, mark, again, capsys):
    with_task_file(folder, mark)
    (folder / "task.py").write_text("import sys\nsys.exit(0)\n")
    digest = hashlib.sha256((folder / "task.py").read_bytes()).hexdigest()
    edit(folder, files={"task.py": digest})
    assert main(["reproduce", str(folder), "--run-code", "--quiet"]) == 2
    assert "reproduced" not in capsys.readouterr().out


def test_what_runs_the_work_again_and_leaves_is_no_reproduction(folder, monkeypatch, capsys):
    def leave(task: Any, **settings: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(MODULE, "discover", leave)
    assert main(["reproduce", str(folder), "--quiet"]) == 2
    assert "ends the program" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(
            ({"config__options": {name: "x"}}, f"option {name!r}")
            for name in ("out", "force", "progress", "device", "model", "task", "self", "run_code", "__class__")
        ),
        ({"config__options": {"contrast": 3}}, "names with texts"),
        ({"config__options": {"contrast": "x"}}, "unknown contrast 'x'"),
        ({"config__method_options": {"out": "x"}}, "out"),
        ({"config__method_options": {"force": True}}, "force"),
        ({"config__out": "x"}, "out"),
        ({"config__force": True}, "force"),
        ({"config__run_code": True}, "run_code"),
        ({"config__task": ["a"]}, "task is"),
        ({"config__model": {"a": 1}}, "model is"),
        ({"config__device": 3}, "device is"),
        ({"config__metric": ["x"]}, "metric is"),
    ],
)
def test_settings_that_a_run_does_not_have_are_refused(change, says, folder, again):
    edit(folder, **change)
    with pytest.raises(CircuitLabError) as told:
        reproduce(folder)
    assert says in str(told.value)
    assert again == []


# ------------------------------------------------------------------------------------------------ files


OUTSIDE = ("../../etc/passwd", "/etc/passwd", "sweeps/../../x", "C:\\x", "..\\x", "C:/x", "", "a\0b", "x" * 5000)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, folder, again):
    with pytest.raises(RunError):
        file_inside(folder, name)
    edit(folder, files={name: "0" * 64})
    with pytest.raises(RunError):
        reproduce(folder)
    assert again == []


def test_links_devices_and_folders_are_not_read_as_files(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    (folder / "through").symlink_to(tmp_path)
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "within").symlink_to(folder / "edges.csv")
    os.mkfifo(folder / "pipe")
    for name in ("out", "dangling", "through/secret", "zero", "loop", "pipe", "sweeps"):
        with pytest.raises(RunError):
            file_inside(folder, name)
    assert file_inside(folder, "within") == folder / "within"
    assert file_inside(folder, "nothing") is None
    assert file_inside(folder, "sweeps/head_z.csv") == folder / "sweeps/head_z.csv"
