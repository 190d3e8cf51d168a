"""Tables of coloured cells: heatmaps, attention patterns, words of a logit lens."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from circuitlab.viz.save import panel
from circuitlab.viz.style import PAPER, text_on

Cell = tuple[int, int]
"""Row and column."""


def draw_cells(
    axes: Axes,
    values: Float[np.ndarray, "grid_row grid_col"],
    colours: Colormap,
    scale: Normalize,
    *,
    edge: str = PAPER,
    line: float = 0.6,
) -> QuadMesh:
    """Colour one cell for each value, row 0 at the top; axes without frame and tick marks.

    Args:
        axes: Where to draw.
        values: The values; masked ones are left empty.
        colours: The colour map.
        scale: Its range.
        edge: Colour of the lines between cells.
        line: Their width in points.

    Returns:
        The cells.
    """
    n_rows, n_cols = values.shape
    mesh = axes.pcolormesh(
        np.arange(n_cols + 1), np.arange(n_rows + 1), values, cmap=colours, norm=scale, edgecolors=edge, linewidth=line
    )
    axes.set(xlim=(0, n_cols), ylim=(n_rows, 0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=3)
    return mesh


def write_in_cells(
    axes: Axes, mesh: QuadMesh, words: Mapping[Cell, str], size: float, bold: Collection[Cell] = ()
) -> None:
    """Write in cells, dark on light and white on dark.

    Args:
        axes: Of the cells.
        mesh: The cells.
        words: Cell -> text.
        size: Points.
        bold: Cells whose text is bold.
    """
    values = mesh.get_array()
    assert values is not None, "cells have values"
    for (row, col), text in words.items():
        red, green, blue, _ = mesh.to_rgba(values[row, col])
        axes.text(
            col + 0.5, row + 0.5, text, ha="center", va="center_baseline", fontsize=size,
            color=text_on((red, green, blue)), fontweight="bold" if (row, col) in bold else "normal",
        )  # fmt: skip


def draw_colour_bar(figure: Figure, axes: Axes, mesh: QuadMesh, quantity: str, height: float = 1.6) -> Axes:
    """A colour bar on the right of axes, from their top downwards.

    Args:
        figure: The figure.
        axes: Whose right edge and top it follows.
        mesh: Cells whose colours it explains.
        quantity: What the colours show, with its unit.
        height: Inches.

    Returns:
        Its axes.
    """
    width, total = figure.get_size_inches()
    beside = axes.get_position(original=True)
    bar = panel(figure, "colour bar", beside.x1 * width + 0.18, beside.y1 * total - height, 0.13, height)
    figure.colorbar(mesh, cax=bar).outline.set_visible(False)
    bar.set_ylabel(quantity, fontsize=7.5, linespacing=1.3)
    bar.tick_params(length=2, width=0.6, pad=2, labelsize=7)
    return bar
