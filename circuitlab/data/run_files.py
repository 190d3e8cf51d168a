"""Files of a run folder that somebody else may have made: read from inside the folder only, and never run unasked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from circuitlab.data.registry import load_task, task_names
from circuitlab.data.task import Task
from circuitlab.errors import RunError, UnknownNameError

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


def file_inside(folder: Path, name: str) -> Path | None:
    """The path of a file that a run folder or its manifest names, if it is there.

    Args:
        folder: The run folder; it may be a symbolic link itself.
        name: A relative path with forward slashes, such as `sweeps/head_z.csv`.

    Returns:
        The path, or None where nothing has this name.

    Raises:
        RunError: The name leads out of the folder (absolute, `..`, or through a symbolic link), or names something that
            is no regular file.

    Example:
        >>> file_inside(Path("."), "no such file") is None
        True
    """
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or PureWindowsPath(name).drive:
        raise RunError(f"run {str(folder)!r} names a file {name!r}; files of a run have paths inside its folder.")
    if ".." in pure.parts:
        raise RunError(f"run {str(folder)!r} names a file {name!r} outside its folder; such files are not read.")
    path = folder / pure
    try:
        there, linked = path.exists(), path.is_symlink()
        real, regular = path.resolve(), path.is_file()
        inside = real.is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
        raise RunError(f"{name[:80]!r} in the run folder {str(folder)!r} cannot be read: {error}.") from error
    if not there and not linked:
        return None
    if not inside:
        raise RunError(
            f"{name} in the run folder {str(folder)!r} is a symbolic link that leads out of the folder, to "
            f"{str(real)!r}; it is not followed. Put a copy of the file there."
        )
    if there and not regular:
        raise RunError(f"{name} in the run folder {str(folder)!r} is no regular file.")
    return path if there else None


def files_inside(folder: Path) -> dict[str, Path]:
    """Every file of a run folder by its name in it.

    Raises:
        RunError: A symbolic link leads out of the folder or to a folder, or something is no regular file.
    """
    found = dict[str, Path]()
    for where, folders, names in os.walk(folder):
        linked = [name for name in folders if (Path(where) / name).is_symlink()]
        for name in (*names, *linked):
            inner = (Path(where) / name).relative_to(folder).as_posix()
            if (path := file_inside(folder, inner)) is not None:
                found[inner] = path
    return dict(sorted(found.items()))


def task_file_of(folder: Path, manifest: Mapping[str, Any]) -> TaskFile | None:
    """The task file whose code has to run before the run can be made again.

    Args:
        folder: The run folder.
        manifest: What its `manifest.json` holds.

    Returns:
        The file, or None where the run is of a built-in task. Nothing is run.

    Raises:
        RunError: The task is not built in and the folder does not keep its file as the manifest lists it. A path that
            the manifest names is never used.
        UnknownNameError: The task is a name that does not exist.
    """
    task, listed = manifest["config"]["task"], manifest.get("files")
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
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise RunError(
            f"{TASK_FILE} in the run folder {str(folder)!r} is not the file that the run used: its SHA-256 is {found}, "
            f"the manifest says {expected}. Restore the file."
        )
    return TaskFile(path=path, sha256=found)


def task_of_run(folder: Path, manifest: Mapping[str, Any], *, run_code: bool = False) -> Task:
    """The task of a run with the run's options: a built-in one, or the one in the folder's task file.

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
