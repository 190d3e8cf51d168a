"""The figures of the report: those of the folder, or drawn again where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from circuitlab.errors import FormatError
from circuitlab.report.folder import RunFolder, Sweep, damaged
from circuitlab.report.format import interval, number
from circuitlab.report.pictures import Picture, bitmap, drawing
from circuitlab.viz import FaithfulnessCurve, draw_circuit, faithfulness_figure, figure_bytes, heatmap


def sweep_figure(sweep: Sweep) -> tuple[Picture, str]:
    """The heatmap of a sweep and its caption; drawn again from its table where the folder has no picture."""
    png = figure_bytes(heatmap(sweep.grid), "png") if sweep.png is None else sweep.png
    words = strongest_cell(sweep)
    return bitmap(png, f"Heatmap: {sweep.grid.title}. {words}"), words


def strongest_cell(sweep: Sweep) -> str:
    """The cell with the largest absolute effect, in words."""
    grid = sweep.grid
    if not np.isfinite(grid.values).any():
        return "No finite value."
    row, col = np.unravel_index(np.nanargmax(np.abs(grid.values - grid.centre)), grid.values.shape)
    label = grid.col_labels[col] + (f" (position {grid.col_numbers[col]})" if grid.col_numbers else "")
    ends = () if grid.low is None or grid.high is None else [float(grid.low[row, col]), float(grid.high[row, col])]
    value = ", ".join(filter(None, (number(float(grid.values[row, col])), interval(ends))))
    return f"Strongest: {grid.row_title} {grid.row_labels[row]}, {grid.col_title} {label}: {value}."


def circuit_figure(run: RunFolder) -> Picture:
    """The drawing of the circuit; drawn again where the folder has none.

    Returns:
        The drawing, to be embedded.

    Raises:
        RunError: `circuit.svg` is not an SVG file.
    """
    svg = run.drawing
    if svg is None:
        svg = figure_bytes(draw_circuit(run.nodes, run.edges), "svg").decode()
    try:
        return drawing(svg, f"The circuit: {len(run.nodes)} nodes, {len(run.edges)} edges.")
    except FormatError as error:
        raise damaged(run.path, "circuit.svg", str(error)) from error


def curve_figure(run: RunFolder, evaluation: Mapping[str, Any]) -> Picture:
    """Faithfulness against size.

    Returns:
        The figure, to be embedded.

    Raises:
        RunError: The curve in `evaluation.json` is damaged.
    """
    try:
        curve = FaithfulnessCurve.of(evaluation)
    except FormatError as error:
        raise damaged(run.path, "evaluation.json", str(error).rstrip(".")) from error
    svg = figure_bytes(faithfulness_figure(curve), "svg").decode()
    return drawing(svg, "Faithfulness against the number of edges kept.")
