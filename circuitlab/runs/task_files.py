"""The task of a run folder, which may be untrusted: its code runs only with `run_code`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitlab.data.registry import load_task, task_names
from circuitlab.data.task import Task
from circuitlab.digests import file_sha256
from circuitlab.errors import RunError, UnknownNameError
from circuitlab.files import file_inside
from circuitlab.runs.tables import is_of_table, task_of_table

TASK_FILE = "task.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """The task file that a run folder keeps.

    Attributes:
        path: Where it is.
        sha256: Digest of its bytes, equal to the one in the manifest.
    """

    path: Path
    sha256: str


def task_file_of(folder: Path, manifest: Mapping[str, Any]) -> TaskFile | None:
    """The task file whose code has to run before the run can be made again.

    Args:
        folder: The run folder.
        manifest: What its `manifest.json` holds.

    Returns:
        The file, or None where the run is of a built-in task or a table of pairs. Nothing is run.

    Raises:
        RunError: The task is not built in and the folder does not keep its file as the manifest lists it. A path that
            the manifest names is never used.
        UnknownNameError: The task is a name that does not exist.
    """
    task, listed = manifest["config"]["task"], manifest.get("files")
    if is_of_table(manifest):
        return None
    if isinstance(task, str) and task in task_names():
        return None
    path = file_inside(folder, TASK_FILE)
    expected = listed.get(TASK_FILE) if isinstance(listed, Mapping) else None
    if path is None or expected is None:
        if isinstance(task, str) and "/" not in task and not task.endswith(".py") and path is None:
            raise UnknownNameError.of("task", task, task_names(), f"The run folder keeps no {TASK_FILE} either.")
        lacks = "is not in the folder" if path is None else "is not listed in the manifest"
        raise RunError(
            f"run {str(folder)!r} is of a task file, {task!r}, but its copy {TASK_FILE} {lacks}. Task files are taken "
            "from inside the run folder only."
        )
    found = file_sha256(path)
    if found != expected:
        raise RunError(
            f"{TASK_FILE} in the run folder {str(folder)!r} is not the file that the run used: its SHA-256 is {found}, "
            f"the manifest says {expected}. Restore the file."
        )
    return TaskFile(path=path, sha256=found)


def task_of_run(folder: Path, manifest: Mapping[str, Any], *, run_code: bool = False) -> Task:
    """The task of a run with the run's options: a built-in one, or the one of the folder's table or task file.

    Args:
        folder: The run folder.
        manifest: What its `manifest.json` holds.
        run_code: Allow the code of the folder's task file to run. Without it a run of a task file is refused.

    Returns:
        The task.

    Raises:
        RunError: The code is not allowed, or is not what the manifest lists; the message names file and SHA-256. Or the
            options are none of the task's.
        TaskFileError: The task file does not work.
    """
    if is_of_table(manifest):
        return task_of_table(folder, manifest)
    file = task_file_of(folder, manifest)
    if file is not None and not run_code:
        raise RunError(
            f"run {str(folder)!r} has a task file of its own, whose code would run: {str(file.path)!r} (SHA-256 "
            f"{file.sha256}). Read that file first, then allow it with --run-code (run_code=True in Python)."
        )
    task = load_task(manifest["config"]["task"] if file is None else file.path)
    options = manifest["config"].get("options") or {}
    if not isinstance(options, Mapping) or not all(isinstance(value, str) for value in options.values()):
        raise RunError(f"the manifest of run {str(folder)!r} has the options {options!r}; they are names with texts.")
    if unknown := sorted(set(options) - set(task.options)):
        known = ", ".join(task.options) or "none"
        raise RunError(
            f"the manifest of run {str(folder)!r} has the option {unknown[0]!r}, which task {task.name!r} does not "
            f"have. Its options: {known}."
        )
    return task.with_options(**options)
