"""Write the tables and heatmaps of a sweep into a folder, whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from circuitlab.errors import OutputExistsError
from circuitlab.viz import save_figure

if TYPE_CHECKING:
    from circuitlab.patching.grid import Grid


def check_free(folder: Path, *, force: bool) -> None:
    """Refuse a path that is taken, before any work.

    Raises:
        OutputExistsError: It is a file, or it exists and `force` is not given.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"output {str(folder)!r} is a file; tables and heatmaps need a folder. Name another.")
    if folder.exists() and not force:
        raise OutputExistsError(f"output folder {str(folder)!r} exists. Name another with --out, or add --force.")


def write_grids(grids: Mapping[str, "Grid"], folder: Path, correction: str | None = None) -> None:
    """One CSV table and one PNG heatmap a site; files of other names that are there already stay."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = Path(scratch)
        for site, grid in grids.items():
            grid.to_frame(correction).to_csv(made / f"{site}.csv", index=False)
            save_figure(grid.plot(), made / f"{site}.png")
        folder.mkdir(exist_ok=True)
        for file in made.iterdir():
            os.replace(file, folder / file.name)
