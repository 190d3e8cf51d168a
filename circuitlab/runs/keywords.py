"""The keywords of `discover`: its signature and documentation, made from the declarations of the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from textwrap import fill
from typing import Any, TypeVar

from circuitlab.data.registry import former_options, load_task
from circuitlab.data.task import Task
from circuitlab.discovery.method import MethodLike
from circuitlab.errors import UnknownNameError
from circuitlab.graphs.selection import SelectionRule
from circuitlab.metrics import MetricLike
from circuitlab.patching.runs.given_outputs import AblationFunction
from circuitlab.patching.sweeps.sites import Site
from circuitlab.progress import Progress
from circuitlab.settings import SETTINGS

R = TypeVar("R")
# What annotations of the signature may name.
TYPES = (AblationFunction, Any, Mapping, MethodLike, MetricLike, Path, Progress, SelectionRule, Sequence, Site, Task)
_FORMER = '        options: Former spelling of `task_options`, such as `contrast="gender"`.'


def takes_settings(function: Callable[..., R]) -> Callable[..., R]:
    """Decorate `discover`: its keywords become the declared settings.

    The decorated function gets all of them, defaults filled in; `{settings}` in its docstring is replaced by their
    lines. Other keywords are options of the task in their former spelling.

    Returns:
        The decorated function.
    """

    def call(task: str | Path | Task, **given: Any) -> R:
        settings = {name: setting.default for name, setting in SETTINGS.items() if name != "task"} | given
        if former := {name: settings.pop(name) for name in given if name not in SETTINGS}:
            task = load_task(task)
            for name in former:
                if name not in task.options:
                    raise UnknownNameError.of("setting", name, SETTINGS, "Options of the task go into task_options={}.")
            settings["task_options"] = former_options("discover", settings["task_options"], former)
        if "n" not in given:
            settings["n"] = None  # so many as there are usually; a table may have fewer
        return function(task, **settings)

    call = wraps(function)(call)
    del call.__wrapped__  # annotations are resolved here
    vars(call)["__signature__"] = _signature()
    call.__doc__ = (function.__doc__ or "").replace("{settings}", documentation().lstrip())
    return call


def _signature() -> Signature:
    parameters = [
        Parameter(
            name,
            Parameter.POSITIONAL_OR_KEYWORD if name == "task" else Parameter.KEYWORD_ONLY,
            default=Parameter.empty if name == "task" else setting.default,
            annotation=setting.given or setting.kind,
        )
        for name, setting in SETTINGS.items()
    ]
    return Signature(
        [*parameters, Parameter("options", Parameter.VAR_KEYWORD, annotation=Any)], return_annotation="Run"
    )


def documentation() -> str:
    """The settings as lines of an Args section.

    Returns:
        The text.
    """
    lines = [
        fill(f"{name}: {setting.what}", 120, initial_indent=" " * 8, subsequent_indent=" " * 12, break_long_words=False)
        for name, setting in SETTINGS.items()
        if name != "task"
    ]
    return "\n".join([*lines, _FORMER])
