"""Find a task by name, by file, by table, or take it as it is.

Names are entry points of the group `circuitlab.tasks`: the bundled tasks' and those that other packages add.
"""

import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from circuitlab import plugins
from circuitlab.arguments import checked
from circuitlab.data.sampling import global_randomness_kept
from circuitlab.data.tables.options import TableOptions
from circuitlab.data.tables.readers import SUFFIXES
from circuitlab.data.tables.rows import pair_table
from circuitlab.data.tables.sources import is_table, read_source
from circuitlab.data.tables.task_file import SUFFIXES as TASK_FILES
from circuitlab.data.tables.task_file import read_task_file
from circuitlab.data.task import Task
from circuitlab.errors import (
    CircuitLabError,
    ConfigError,
    FileError,
    TaskFileError,
    UnknownNameError,
    in_one_line,
    shown,
)
from circuitlab.files import read_bytes
from circuitlab.settings import SETTINGS

LARGEST_FILE = 10_000_000

LONGEST_TABLE_NAME = 60

GROUP = "circuitlab.tasks"


def task_names() -> list[str]:
    """Names of all tasks, the bundled ones first; none of them is imported.

    Returns:
        The names.
    """
    return list(plugins.installed(GROUP))


def is_bundled(name: str) -> bool:
    """Whether a task of this name is part of this package.

    Returns:
        Whether it is.
    """
    entries = plugins.installed(GROUP)
    return name in entries and plugins.is_ours(entries[name])


@checked
def load_task(
    task: str | Path | Task,
    *,
    task_options: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    max_bad_rows: int = 0,
    data_split: str | None = None,
    data_config: str | None = None,
    data_revision: str | None = None,
    **options: str,
) -> Task:
    """Load a task.

    Args:
        task: A name that `circuitlab tasks` lists (`"gendered-pronouns"`, or with an option value
            `"gendered-pronouns:gender"`), the path of a Python file that holds `TASK = Task(...)`, a table of pairs
            (a CSV, TSV, JSON lines, JSON or Parquet file, a folder of them, a data set that `datasets` saved, or the
            name of one on the hub), or a `Task`.
        task_options: Option values by name, such as `{"contrast": "gender"}`.
        columns: For a table: our field -> its column, as in `Task.from_frame`, for those that are not recognised.
        max_bad_rows: So many rows of a table that hold no pair are left out; more are an error.
        data_split: The one split of a data set to read; by default all, of which train is for discovery and test is
            held out.
        data_config: The configuration of a data set.
        data_revision: The revision of a data set on the hub.
        options: Former spelling of `task_options`, such as `contrast="gender"`.

    Returns:
        The task with the options in force.

    Raises:
        UnknownNameError: No such task, option or value; the message lists what there is.
        ConfigError: An option is given twice, or one that is named like a setting of `discover` in the former spelling.
        TaskFileError: The file does not exist, does not import, ends the program, or holds no task; or another package
            lists something else than a `Task` under this name.
        TableError: A table has columns that are not known, or more bad rows than allowed; the message names file, line,
            column and value.

    Example:
        >>> from circuitlab import load_task
        >>> load_task("gendered-pronouns", contrast="gender").options["contrast"]
        ('capital', 'gender')
    """
    options = former_options("load_task", task_options, options)
    reading = TableOptions(
        columns=dict(columns or {}), max_bad_rows=max_bad_rows, split=data_split, config=data_config,
        revision=data_revision,
    )  # fmt: skip
    if isinstance(task, Task):
        _check_table_options(reading, task.table and task.table.options, f"task {task.name!r}")
        return task.with_options(**options)
    text = str(task)
    name, _, values = text.partition(":")
    entries = plugins.installed(GROUP)
    if name not in entries and is_table(text):  # a name goes before a folder that is called like it
        return _from_table(text, reading).with_options(**options)
    _check_table_options(reading, None, repr(text))
    if text.endswith(".py") or "/" in text or (name not in entries and os.path.isfile(text)):
        return _from_file(Path(text)).with_options(**options)
    UnknownNameError.check("task", name, entries, "A task of your own is given as the path of its .py file.")
    found = plugins.load(entries[name])
    if not isinstance(found, Task):
        raise TaskFileError(f"task {name!r}, {entries[name].value}, is {shown(found)}; it must be a Task.")
    return found.with_options(**_by_value(found, [v for v in values.split(",") if v]) | options)


def _from_table(text: str, reading: TableOptions) -> Task:
    """The task of a table, named after its file; never like a task that has a name already."""
    source, stem = text, Path(text.rstrip("/")).name
    stem = stem if Path(text).is_dir() else stem.removesuffix(".gz").rpartition(".")[0] or stem
    if Path(text).suffix.lower() in TASK_FILES:
        file = read_task_file(Path(text), reading)
        source, stem, reading = file.source, file.name, file.options
    table = pair_table(read_source(source, reading), reading, source).checked()
    name = re.sub(r"[^\w.+-]+", "-", stem).strip(". -_")[:LONGEST_TABLE_NAME].rstrip(". -_") or "table"
    return Task.from_table(table, f"{name}-table" if name in task_names() else name, origin=text)


def _check_table_options(given: TableOptions, kept: TableOptions | None, owner: str) -> None:
    """Refuse options of tables for what is no table, and others than those that a table was read with.

    Raises:
        ConfigError: Some are given.
    """
    if given.given and given != kept:
        name, value = next(iter(given.given.items()))
        raise ConfigError(f"{name}={value!r} only applies to tables of pairs; {owner} is no table. Leave it out.")


def former_options(called: str, task_options: Mapping[str, str] | None, former: Mapping[str, str]) -> dict[str, str]:
    """The options of a task, of which some may be given as keywords, with a warning.

    Returns:
        All options by name.

    Raises:
        ConfigError: One is given twice, or is named like a setting of `discover`.
    """
    if former:
        for name in former:
            if name in SETTINGS or name in (task_options or {}):
                what = "is a setting of discover" if name in SETTINGS else "is given twice"
                raise ConfigError(
                    f"{called}(): {name} {what}. Give the option in task_options={{{name!r}: ...}} alone."
                )
        message = f"options of a task are given in task_options: {called}(..., task_options={dict(former)!r})."
        warnings.warn(message, FutureWarning, stacklevel=_frames_to_the_caller())
    return {**(task_options or {}), **former}


def _frames_to_the_caller() -> int:
    """How far up the stack the code is that called the library."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "circuitlab":
        frame, depth = frame.f_back, depth + 1
    return depth


def _by_value(task: Task, values: list[str]) -> dict[str, str]:
    """The option of each value; `key=value` names it."""
    chosen = {}
    for value in values:
        if "=" in value:
            key, value = value.split("=", 1)
            chosen[key] = value
            continue
        owners = [name for name, allowed in task.options.items() if value in allowed]
        if not owners:
            values_there = [v for allowed in task.options.values() for v in allowed]
            raise UnknownNameError.of("option value", value, values_there, owner=f"task {task.name!r}")
        chosen[owners[0]] = value
    return chosen


def _from_file(path: Path) -> Task:
    source = _source(path)
    module_name = f"circuitlab_task_{path.stem}"
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module  # dataclasses look their module up by name
    try:
        # Not through an import loader, which would leave a __pycache__ next to the file.
        with global_randomness_kept():
            exec(compile(source, str(path), "exec"), module.__dict__)
    except (CircuitLabError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() in a task must not end the program
        line = getattr(error, "lineno", None) or _line_in(error, path)
        where = f", line {line}" if line else ""
        raise TaskFileError(f"task file {str(path)!r}{where} does not import: {in_one_line(error)}") from error
    finally:
        sys.modules.pop(module_name, None)
    named = getattr(module, "TASK", None)
    found = {id(v): v for v in vars(module).values() if isinstance(v, Task)}
    if isinstance(named, Task):
        return replace(named, origin=str(path))
    if named is None and len(found) == 1:
        return replace(next(iter(found.values())), origin=str(path))
    problem = f"holds {len(found)} tasks and none is called TASK" if found else "defines no task"
    if named is not None:
        problem = f"defines TASK as {shown(named)}, which is no Task"
    raise TaskFileError(
        f"task file {str(path)!r} {problem}. Write: TASK = Task(name=..., version=..., summary=..., draw=...)"
    )


def _source(path: Path) -> bytes:
    if path.is_file() and path.suffix != ".py":
        raise TaskFileError(
            f"task file {str(path)!r} does not end in .py, so it is not run. Give a Python file, or a table of pairs, "
            f"whose name ends in {', '.join((*SUFFIXES, *TASK_FILES))}."
        )
    try:
        names = ", ".join(task_names())
        return read_bytes(path, "task file", most=LARGEST_FILE, hint=f"Give a name ({names}) or a file.")
    except FileError as error:
        raise TaskFileError(str(error)) from error


def _line_in(error: BaseException, path: Path) -> int | None:
    """The last line of a file in the traceback of an error."""
    frames = reversed(extract_tb(error.__traceback__))
    return next((frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()), None)
