"""Progress on stderr: bars in a terminal, one line a step elsewhere, nothing if quiet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich_progress
from rich.console import Console

from circuitlab.progress import Progress, silent


@contextmanager
def progress(*, quiet: bool) -> Iterator[Progress]:
    """A progress callback for as long as one job runs."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=24),
            rich_progress.TaskProgressColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        with rich_progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Bars:
    """One bar a step."""

    def __init__(self, bars: rich_progress.Progress) -> None:
        self._bars = bars
        self._tasks = dict[str, rich_progress.TaskID]()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total)
        self._bars.update(self._tasks[step], completed=done, total=total)


class _Lines:
    """One line when a step begins, with the seconds so far."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._begun = set[str]()

    def __call__(self, step: str, done: int, total: int) -> None:
        if step not in self._begun:
            self._begun.add(step)
            print(f"{time.monotonic() - self._start:6.1f} s  {step}", file=sys.stderr, flush=True)
