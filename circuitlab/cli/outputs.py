"""Files that commands write beside what they print: reserved before any work, written whole or not at all."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitlab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from circuitlab.outputs import Reserved

TABLE, TABLE_OR_PICTURE, PAGE = (".csv",), (".csv", ".png", ".svg"), (".html", ".htm")
Page = Annotated[
    str | None, typer.Option("--html", metavar="PATH", help="Write the text as an HTML page, coloured by token.")
]

reservations = ExitStack()
"""What the running command reserved; `circuitlab.cli.main` gives it back however the command ends."""
_places: dict[str, "Reserved"] = {}


def check_file(file: str | None, *, force: bool, option: str = "--out", kinds: tuple[str, ...] | None = None) -> None:
    """Reserve a file before any work; one of another kind, or that is there already, is refused.

    Raises:
        ConfigError: Its suffix is none of `kinds`, or no file of this name can be made.
        OutputExistsError: It exists and `force` is not given, or another process is writing it.
    """
    if file is None:
        return
    if kinds is not None and Path(file).suffix not in kinds:
        raise ConfigError(f"{option} {file!r} is written as {' or '.join(kinds)}. Use that suffix.")
    from circuitlab.outputs import reserved_file

    _places[file] = reservations.enter_context(reserved_file(file, force=force, option=option))
    reservations.callback(_places.pop, file, None)


def check_folder(folder: str, *, force: bool) -> str:
    """Reserve a folder of tables and pictures before any work.

    Returns:
        The folder with `~` replaced, as in `--out=~/x`, where no shell does it.

    Raises:
        ConfigError: No folder of this name can be made.
        OutputExistsError: It exists and `force` is not given, or another process is writing it.
    """
    from circuitlab.outputs import at_home, reserved_tables

    folder = str(at_home(folder)) if folder else folder
    _places[folder] = reservations.enter_context(reserved_tables(folder, force=force))
    reservations.callback(_places.pop, folder, None)
    return folder


def write_file(file: str | None, write: Callable[[Path], object]) -> None:
    """Write a file that `check_file` reserved; nothing for None."""
    from circuitlab.outputs import put_file

    if file is not None:
        put_file(_places[file], write)


def write_folder(folder: str, files: Mapping[str, Callable[[Path], object]]) -> None:
    """Write files into a folder that `check_folder` reserved; files of other names that are there already stay."""
    from circuitlab.outputs import put_tables

    put_tables(_places[folder], files)


def write_result(frame: Callable[[], "pd.DataFrame"], out: str | None, plot: "Callable[[], Any] | None" = None) -> None:
    """Write a table, or a drawing where the suffix is not .csv."""

    def write(path: Path) -> None:
        if path.suffix == ".csv":
            frame().to_csv(path, index=False)
            return
        from circuitlab.viz import save_figure

        assert plot is not None, "check_file has seen the suffix"
        save_figure(plot(), path)

    write_file(out, write)


def places(out: str | None, html: str | None = None) -> dict[str, str]:
    """The files that were written, for --json."""
    return {name: path for name, path in (("out", out), ("html", html)) if path is not None}


def tell(out: str | None, html: str | None = None) -> None:
    """A line for each file that was written."""
    from circuitlab.cli import display

    for name, path in (("written", out), ("page", html)):
        if path is not None:
            display.print_line(f"{name}: {path}")
