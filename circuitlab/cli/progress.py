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
    """A progress callback during one job.

    Returns:
        The callback.
    """
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
            tasks = dict[str, rich_progress.TaskID]()

            def advance(step: str, done: int, total: int) -> None:
                """One bar a step."""
                if step not in tasks:
                    tasks[step] = bars.add_task(step, total=total)
                bars.update(tasks[step], completed=done, total=total)

            yield advance
    else:
        start, begun = time.monotonic(), set[str]()

        def begin(step: str, done: int, total: int) -> None:
            """One line when a step begins, with the seconds so far."""
            if step not in begun:
                begun.add(step)
                print(f"{time.monotonic() - start:6.1f} s  {step}", file=sys.stderr, flush=True)

        yield begin
