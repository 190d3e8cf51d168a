"""The tables and heatmaps of a sweep as files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from circuitlab.viz import save_figure

if TYPE_CHECKING:
    from circuitlab.patching.grid import Grid


def files_of(grids: Mapping[str, "Grid"], correction: str | None = None) -> dict[str, Callable[[Path], object]]:
    """One CSV table and one PNG heatmap a site: names of the files, and what writes each."""
    files: dict[str, Callable[[Path], object]] = {}
    for site, grid in grids.items():
        files[f"{site}.csv"] = lambda path, grid=grid: grid.to_frame(correction).to_csv(path, index=False)
        files[f"{site}.png"] = lambda path, grid=grid: save_figure(grid.plot(), path)
    return files
