"""Files that commands write beside what they print: refused before any work if taken, never left by halves."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from circuitlab.errors import ConfigError, OutputExistsError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TABLE, TABLE_OR_PICTURE = (".csv",), (".csv", ".png", ".svg")
Page = Annotated[
    str | None, typer.Option("--html", metavar="PATH", help="Write the text as a page, coloured token by token.")
]


def check_file(file: str | None, *, force: bool, option: str = "--out", kinds: tuple[str, ...] | None = None) -> None:
    """Refuse a file of another kind, or one that is there already, before any work.

    Raises:
        ConfigError: Its suffix is none of `kinds`.
        OutputExistsError: It exists and `force` is not given.
    """
    if file is None:
        return
    path = Path(file).expanduser()
    if kinds is not None and path.suffix not in kinds:
        raise ConfigError(f"{option} {file!r} is written as {' or '.join(kinds)}. Use that suffix.")
    if path.is_dir() or (path.exists() and not force):
        raise OutputExistsError(f"file {file!r} exists. Name another with {option}, or replace it with --force.")


def write_result(
    frame: Callable[[], "pd.DataFrame"], out: str | None, plot: "Callable[[], Figure] | None" = None
) -> None:
    """Write a table, or a drawing where the suffix is not .csv; under a temporary name first."""
    if out is None:
        return
    path = Path(out).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".csv":
        from circuitlab.viz import save_figure

        assert plot is not None, "check_file has seen the suffix"
        save_figure(plot(), path)
        return
    temporary = path.with_name(f".{path.name}.partial")
    try:
        frame().to_csv(temporary, index=False)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def places(out: str | None, html: str | None = None) -> dict[str, str]:
    """The files that were written, for --json."""
    return {name: path for name, path in (("out", out), ("html", html)) if path is not None}


def tell(out: str | None, html: str | None = None) -> None:
    """A line for each file that was written."""
    from circuitlab.cli import display

    for name, path in (("written", out), ("page", html)):
        if path is not None:
            display.print_line(f"{name}: {path}")
