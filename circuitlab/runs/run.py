"""A run that can be written to a folder, and functions that find one and write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from circuitlab.outputs.paths import at_home
from circuitlab.runs.record import RunRecord
from circuitlab.runs.write import reserve_run, write_run

P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Run(RunRecord):
    """The results of one discovery, and a method that writes them; the attributes are those of `RunRecord`.

    Example:
        >>> from circuitlab import discover
        >>> run = discover("name-throw", n=4)  # doctest: +SKIP
        >>> run.write("runs/throw").folder  # doctest: +SKIP
        PosixPath('runs/throw')
    """

    def write(self, folder: str | Path, force: bool = False) -> Run:
        """Write the run folder, whole or not at all.

        Returns:
            The run, with its folder.

        Raises:
            OutputExistsError: The folder is there and `force` is not given, or it may not be replaced.
        """
        with reserve_run(folder, force) as place:
            return replace(self, folder=write_run(self, place, at_home(folder)))


def writes_run(find: Callable[P, Run]) -> Callable[P, Run]:
    """Give a function that finds a run an output folder: reserved before it starts, written when it is done.

    The function's keywords `out` and `force` are read here; without `out` nothing is written.

    Returns:
        The decorated function.
    """

    @wraps(find)
    def reserved_first(*args: P.args, **settings: P.kwargs) -> Run:
        out: Any
        out, force = settings.get("out"), bool(settings.get("force", False))
        if out is None:
            return find(*args, **settings)
        with reserve_run(out, force) as place:
            run = find(*args, **settings)
            return replace(run, folder=write_run(run, place, at_home(out)))

    return reserved_first
