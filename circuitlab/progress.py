"""How long work reports its progress: to a function, as a bar in a terminal or notebook, or not at all.

Public functions take `progress: Progress | bool | None = None` and are decorated with `reports_progress` (by
`model_function`, where they run a model), which turns the four choices into one function and removes the bar however
the call ends. Everything below them takes a plain `Progress`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from circuitlab.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

# The function that is called with sentences about a long job while it runs; none, unless a command sets one.
_reader: ContextVar[Callable[[str], None] | None] = ContextVar("reader", default=None)
# Whether a function that reports progress is running, so that those it calls draw no bar of their own.
_nested: ContextVar[bool] = ContextVar("nested", default=False)


class Progress(Protocol):
    """Called with the step's name, how much of it is done, and of how much."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Take note."""
        ...


def silent(step: str, done: int, total: int) -> None:
    """Take no note."""


def note(sentence: str) -> None:
    """Give a sentence to the function of `notes_to`, if one is set."""
    if (reader := _reader.get()) is not None:
        reader(sentence)


@contextmanager
def notes_to(reader: Callable[[str], None]) -> Iterator[None]:
    """Call a function with each sentence about the work, within the block.

    Args:
        reader: Called with each sentence.
    """
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)


def reports_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function whose `progress=` may be a function, a bool or None.

    The decorated function gets a plain `Progress` in its place. None, the default, draws a bar on stderr where that is
    a terminal, or in a notebook, unless another decorated function is running; True always draws one; False never.

    Returns:
        The decorated function.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _reporting(kwargs.get("progress")) as progress:
            kwargs["progress"] = progress
            return function(*args, **kwargs)

    return wrapper


def callback(progress: Progress | bool | None) -> Progress:
    """The function that `reports_progress` made of the choice, for type checkers.

    Returns:
        The function.
    """
    assert callable(progress)
    return progress


@contextmanager
def no_bars() -> Iterator[None]:
    """Draw no bars meanwhile, except where `progress=True` asks for one."""
    outer = _nested.set(True)
    try:
        yield
    finally:
        _nested.reset(outer)


@contextmanager
def _reporting(progress: Any) -> Iterator[Progress]:
    """The function for a choice of `progress=`."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise ConfigError(
            f"progress is {progress!r}. Give None (a bar in a terminal or a notebook), True, False, or a function "
            "that is called with (step, done, total)."
        )
    draws = _can_draw() if progress is True else progress is None and _is_watched()
    bar = _Bar() if draws else None
    try:
        with no_bars():
            yield bar or (cast(Progress, progress) if callable(progress) else silent)
    finally:
        if bar is not None:
            bar.close()


def _is_watched() -> bool:
    """Whether a bar would be seen, and none is drawn yet."""
    return not _nested.get() and _can_draw() and (_in_notebook() or sys.stderr.isatty())


def _can_draw() -> bool:
    """Whether there is a stderr: a process without a console has none, and a parent may have closed it."""
    return sys.stderr is not None and not sys.stderr.closed


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config


class _Bar:
    """One line: the step being done and how much of it. It appears with the first call and goes with `close`."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._step = ""

    def __call__(self, step: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm_class()(total=total, desc=step, leave=False, dynamic_ncols=True)
        elif step != self._step:
            self._bar.reset(total)
            self._bar.set_description_str(step, refresh=False)
        elif total != self._bar.total:
            start = self._bar.start_t
            self._bar.reset(total)
            self._bar.start_t = start
        self._step = step
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the line."""
        if self._bar is not None:
            self._bar.close()


def tqdm_class() -> type:
    """The class of bars for this terminal or notebook; tqdm warns in notebooks that lack ipywidgets, silenced here.

    Returns:
        The class.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread that outlives the bar

    return Bar
