"""Tables of coloured cells, and heatmaps of sweeps: layer 0 at the top; colours symmetric about "no effect"."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from circuitlab.viz.grid import LabelledGrid
from circuitlab.viz.save import MARGIN, canvas, extent, panel, place
from circuitlab.viz.style import BAND, FAINT, MUTED, PAPER, diverging, text_on
from circuitlab.viz.text import POINTS_PER_INCH, clipped, drawable, number, text_width

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


# Sizes in inches and points. Below 0.17 inch a row of labels of 7 points touches the next.
_CELL = (0.17, 0.46)
_ROW = (0.17, 0.36)
_WIDE_CELL = 0.9
_LABEL, _SMALL_LABEL = 8.0, 7.0
_NUMBER_SIZES = (7.5, 7.0, 6.5, 6.0, 5.5)
_LONGEST_LABEL = 18
_BAR_HEIGHT = (1.45, 4.0)
_BETWEEN = 2.4  # of two grids: the colour bar of one and the row labels of the next


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Sizes of a heatmap, decided before anything is drawn.

    Attributes:
        cell: Width and height of a cell in inches.
        col_labels: Column labels, clipped, in glyphs that the font has.
        turned: The column labels do not fit side by side and are turned by 45 degrees.
        label_size: Points of the row and column labels.
        digits: Decimals of the numbers in the cells.
        number_size: Points of the numbers in the cells; None where they do not fit.
    """

    cell: tuple[float, float]
    col_labels: tuple[str, ...]
    turned: bool
    label_size: float
    digits: int
    number_size: float | None


def heatmap(*grids: LabelledGrid) -> Figure:
    """Draw grids, several side by side.

    Blue is above the centre, red below it, near white at it; hatched cells were not measured. Numbers are shown in the
    cells where they can be read, in bold where the 95 % interval excludes the centre.

    Args:
        grids: Each 1 x 1 up to at least 48 x 64 cells.

    Returns:
        A figure of its own size, in which no label is cut off; save it with `save_figure`.
    """
    plans = [_plan(grid) for grid in grids]
    shapes = [grid.values.shape for grid in grids]
    sizes = [(cols * plan.cell[0], rows * plan.cell[1]) for (rows, cols), plan in zip(shapes, plans, strict=True)]
    highest, left = max(height for _, height in sizes), MARGIN
    whole = sum(width for width, _ in sizes) + _BETWEEN * (len(grids) - 1)
    with canvas(whole, highest, "cells") as (figure, first):
        for grid, plan, (width, height) in zip(grids, plans, sizes, strict=True):
            axes = first if grid is grids[0] else panel(figure, "cells", 0, 0, width, height)
            place(figure, axes, left, MARGIN + highest - height, width, height)
            left += width + _BETWEEN
            _draw_grid(figure, axes, grid, plan, height)
    return figure


def _draw_grid(figure: Figure, axes: Axes, grid: LabelledGrid, plan: _Plan, height: float) -> None:
    mesh = _draw_values(axes, grid)
    _label_axes(axes, grid, plan)
    bold = _draw_numbers(axes, grid, plan, mesh)
    lines = [piece for line in grid.quantity.split("\n") for piece in textwrap.wrap(line, 32)]
    bar = draw_colour_bar(figure, axes, mesh, drawable("\n".join(lines)), float(np.clip(height, *_BAR_HEIGHT)))
    if grid.one_sided:
        bar.set_ylim(bottom=grid.centre)
    _draw_note(axes, grid, bold)


def _plan(grid: LabelledGrid) -> _Plan:
    n_rows, n_cols = grid.values.shape
    labels = tuple(drawable(clipped(label, _LONGEST_LABEL)) for label in grid.col_labels)
    widest = max(text_width(label, _LABEL) for label in labels)
    cell_width = float(np.clip(10.5 / n_cols, *_CELL))
    if n_cols <= 10:
        cell_width = float(np.clip(widest + 0.14, cell_width, _WIDE_CELL))
    row_height = 6.0 / n_rows if n_rows <= 48 else 10.0 / n_rows
    cell = (cell_width, float(np.clip(row_height, *_ROW)) if n_rows <= 48 else max(row_height, 0.07))
    finite = grid.values[np.isfinite(grid.values)]
    digits = _digits(max(float(np.abs(finite).max(initial=0.0)), grid.least_reach))
    return _Plan(
        cell=cell,
        col_labels=labels,
        turned=widest > cell_width - 0.06,
        label_size=_LABEL if min(cell) > 0.2 else _SMALL_LABEL,
        digits=digits,
        number_size=_number_size(finite, digits, cell),
    )


def _digits(largest: float) -> int:
    """Decimals that leave the largest value two or three significant digits: 123, 12.3, 1.23, 0.12, 0.012."""
    if largest >= 0.1 or largest == 0:
        return 2 if largest < 10 else 1 if largest < 100 else 0
    return min(5, 1 + math.ceil(-math.log10(largest)))


def _number_size(values: np.ndarray, digits: int, cell: tuple[float, float]) -> float | None:
    """The largest size at which every number leaves some air in its cell."""
    written = {number(value, digits) for value in values.flat}
    for size in _NUMBER_SIZES:
        widest = max((text_width(text, size, "bold") for text in written), default=0.0)
        if widest <= 0.9 * cell[0] and size / POINTS_PER_INCH <= 0.62 * cell[1]:
            return size
    return None


def _draw_values(axes: Axes, grid: LabelledGrid) -> QuadMesh:
    values = np.ma.masked_invalid(grid.values)
    reach = float(np.abs(values - grid.centre).max()) if values.count() else 0.0
    reach = max(reach, grid.least_reach)
    # A grid that is the centre everywhere still needs a scale: one unit.
    reach = reach if reach > 1e-12 else 1.0
    n_rows, n_cols = values.shape
    size = (n_cols, n_rows)
    axes.add_patch(Rectangle((0, 0), *size, facecolor=BAND, edgecolor=FAINT, hatch="/////", linewidth=0, zorder=0))
    return draw_cells(axes, values, diverging(), Normalize(grid.centre - reach, grid.centre + reach))


def _label_axes(axes: Axes, grid: LabelledGrid, plan: _Plan) -> None:
    n_rows, n_cols = grid.values.shape
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if plan.turned else {}
    shown_cols = _every(n_cols, plan.cell[0], 0.16)
    axes.set_xticks(shown_cols + 0.5, [plan.col_labels[i] for i in shown_cols], fontsize=plan.label_size, **turn)
    shown_rows = _every(n_rows, plan.cell[1], 0.13)
    row_labels = [drawable(clipped(grid.row_labels[i], _LONGEST_LABEL)) for i in shown_rows]
    axes.set_yticks(shown_rows + 0.5, row_labels, fontsize=plan.label_size)
    axes.set_xlabel(drawable(grid.col_title), color=MUTED)
    axes.set_ylabel(drawable(grid.row_title), color=MUTED)
    axes.set_title(drawable(grid.title), pad=16 if grid.col_numbers else 7)
    if grid.col_numbers:
        for i in _every(n_cols, plan.cell[0], 0.15):
            axes.annotate(
                grid.col_numbers[i], (i + 0.5, 0), (0, 3), textcoords="offset points", ha="center", va="bottom",
                fontsize=6.0, color=MUTED,
            )  # fmt: skip


def _every(count: int, size: float, needed: float) -> np.ndarray:
    """Which of `count` labels to write where each has `size` inches and needs `needed`."""
    return np.arange(0, count, max(1, int(np.ceil(needed / size))))


def _draw_numbers(axes: Axes, grid: LabelledGrid, plan: _Plan, mesh: QuadMesh) -> bool:
    """Write the numbers; whether one of them is bold."""
    if plan.number_size is None:
        return False
    finite = np.argwhere(np.isfinite(grid.values)).tolist()
    written = {(row, col): number(float(grid.values[row, col]), plan.digits) for row, col in finite}
    # No bold 0: numbers that are too small to be written are not emphasised.
    bold = {cell for cell, text in written.items() if text != "0" and grid.differs is not None and grid.differs[cell]}
    write_in_cells(axes, mesh, written, plan.number_size, bold)
    return bool(bold)


def _draw_note(axes: Axes, grid: LabelledGrid, bold: bool) -> None:
    """How many prompts, what bold and hatched mean: under everything else that the axes carry."""
    notes = []
    if grid.n_examples is not None:
        least, most = grid.n_examples
        notes.append(f"{most:,} prompts" if least == most else f"{least:,} to {most:,} prompts")
    if bold:
        notes.append(f"bold: 95 % interval excludes {grid.centre:g}")
    if not np.isfinite(grid.values).all():
        notes.append("hatched: not measured")
    if not notes:
        return
    below = axes.bbox.y0 - extent(axes).y0
    offset = below / axes.figure.dpi * POINTS_PER_INCH + 5
    axes.annotate(
        "; ".join(notes), (0, 0), (0, -offset), xycoords="axes fraction", textcoords="offset points", va="top",
        fontsize=6.5, color=MUTED,
    )  # fmt: skip
