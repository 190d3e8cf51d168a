"""What commands print and write: files are reserved before any work, and written whole or not at all."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from circuitlab.cli import display
from circuitlab.cli.options import Options
from circuitlab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from circuitlab.outputs.reserve import Reserved

TABLE, TABLE_OR_PICTURE, PICTURE, PAGE = (".csv",), (".csv", ".png", ".svg"), (".png", ".svg"), (".html", ".htm")
Files = Mapping[str, Callable[[Path], object]]

reservations = ExitStack()
"""The reservations of the running command; `circuitlab.cli.main` releases them however the command ends."""


class Output(Options):
    """How a command prints its result, and the files it writes.

    Attributes:
        kinds: The suffixes that each option for a file allows, by the option's name; none for a folder, any for None.
    """

    kinds: ClassVar[dict[str, tuple[str, ...] | None]] = {}
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False

    def __init__(self, given: Mapping[str, Any]) -> None:
        super().__init__(given)
        self.places: dict[str, Reserved] = {}

    @property
    def files(self) -> dict[str, str]:
        """The paths to write, by option."""
        return {name: self.given[name] for name in self.kinds if name in self.given}

    def reserve(self) -> None:
        """Reserve every file before any work.

        Raises:
            ConfigError: A suffix is not allowed, a path cannot be used, or --force is given without a path.
            OutputExistsError: A path exists and --force is not given, or another process is writing it.
        """
        from circuitlab.outputs.reserve import reserved_file, reserved_tables

        if self.given.get("force") and not self.files:
            options = " or ".join(f"--{name}" for name in self.kinds)
            raise ConfigError(f"--force replaces what {options} names, and that is not given. Leave it out.")
        for name, file in self.files.items():
            kinds, force = self.kinds[name], self.given["force"]
            if kinds and Path(file).suffix not in kinds:
                raise ConfigError(f"--{name} {file!r} is written as {' or '.join(kinds)}. Use that suffix.")
            place = (
                reserved_tables(file, force=force)
                if kinds == ()
                else reserved_file(file, force=force, option=name.upper() if kinds is None else f"--{name}")
            )
            self.places[name] = reservations.enter_context(place)

    def write(self, option: str, write: Callable[[Path], object]) -> None:
        """Write the reserved file of an option; nothing where the option is not given."""
        from circuitlab.outputs.reserve import put_file

        if option in self.places:
            put_file(self.places[option], write)

    def write_table(self, frame: "Callable[[], pd.DataFrame]", plot: Callable[[], Any] | None = None) -> None:
        """Write the file of --out: a table, or a drawing where its suffix is not .csv."""

        def write(path: Path) -> None:
            if path.suffix == ".csv" or plot is None:
                frame().to_csv(path, index=False)
            else:
                save_plot(plot(), path)

        self.write("out", write)

    def as_json(self, record: Mapping[str, Any]) -> bool:
        """Print a result and the paths of its files, null for those not written, as one JSON object if --json is given.

        Returns:
            Whether --json is given.
        """
        if self.json:
            display.print_json({**record, **{name: self.given.get(name) for name in self.kinds}})
        return self.json

    def print_files(self) -> None:
        """Print a line for each written file."""
        for name, path in self.files.items():
            display.print_line(f"{'page' if name == 'html' else 'written'}: {path}")


class Forced(Output):
    """The output of a command that writes files."""

    force: Annotated[bool, typer.Option("--force", help="Overwrite existing output.")] = False


class PageOutput(Forced):
    """A page of the text."""

    kinds: ClassVar = {"html": PAGE}
    html: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the text as an HTML page, coloured by token.")
    ] = None


class TableOutput(Forced):
    """A table."""

    kinds: ClassVar = {"out": TABLE}
    out: Annotated[str | None, typer.Option(metavar="PATH", help="Write the table (.csv).")] = None


class TablePageOutput(PageOutput, TableOutput):
    """A table and a page."""

    kinds: ClassVar = {"out": TABLE, "html": PAGE}


class FigureOutput(Forced):
    """A table or a figure."""

    kinds: ClassVar = {"out": TABLE_OR_PICTURE}
    out: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write the table (.csv) or a figure (.png, .svg).")
    ] = None


class PictureOutput(Forced):
    """A figure."""

    kinds: ClassVar = {"out": PICTURE}
    out: Annotated[str | None, typer.Option(metavar="PATH", help="Draw the result as a picture (.png, .svg).")] = None


class FolderOutput(Forced):
    """A folder of tables and figures."""

    kinds: ClassVar = {"out": ()}
    out: Annotated[str | None, typer.Option(metavar="PATH", help="Folder for tables and figures.")] = None

    @property
    def folder(self) -> str | None:
        """The folder, with `~` replaced, as in `--out=~/x`, where no shell does it."""
        from circuitlab.outputs.paths import at_home

        return None if self.out is None else str(at_home(self.out))

    def write_folder(self, files: Files) -> None:
        """Write files into the reserved folder; files of other names stay."""
        from circuitlab.outputs.reserve import put_tables

        if "out" in self.places:
            put_tables(self.places["out"], files)


def table_and_picture(name: str, table: "Callable[[], pd.DataFrame]", plot: Callable[[], Any]) -> Files:
    """How to write `NAME.csv` and `NAME.png`.

    Returns:
        The writers by file name.
    """
    return {
        f"{name}.csv": lambda path: table().to_csv(path, index=False),
        f"{name}.png": lambda path: save_plot(plot(), path),
    }


def save_plot(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a picture."""
    from circuitlab.viz import save_figure

    save_figure(figure, path)
