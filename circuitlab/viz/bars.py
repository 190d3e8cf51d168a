"""What parts of a model add to a number: bars for a list of them, a heatmap for all heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from circuitlab.viz.grid import LabelledGrid
from circuitlab.viz.heatmap import heatmap
from circuitlab.viz.save import canvas
from circuitlab.viz.style import FAINT, INK, MUTED, sign_colour
from circuitlab.viz.text import clipped, drawable, number

_ROW, _WIDTH = 0.19, 4.2
_LONGEST_LABEL = 28


def bars(
    labels: Sequence[str],
    values: Float[np.ndarray, " bar"],
    low: Float[np.ndarray, " bar"],
    high: Float[np.ndarray, " bar"],
    *,
    title: str,
    quantity: str,
) -> Figure:
    """Bars from top to bottom in the order given: blue adds, red takes away; the thin lines are 95 % intervals.

    Args:
        labels: What each bar is.
        values: How far it reaches.
        low: Lower ends of the intervals.
        high: Upper ends.
        title: Over the figure.
        quantity: What the values are, with their unit.

    Returns:
        The figure.
    """
    with canvas(_WIDTH, _ROW * len(labels), "bars") as (figure, axes):
        at = np.arange(len(labels)) + 0.5
        axes.barh(at, values, height=0.72, color=[sign_colour(value) for value in values], zorder=2)
        axes.hlines(at, low, high, color=INK, lw=0.9, zorder=3)
        axes.axvline(0.0, color=MUTED, lw=0.6, zorder=1)
        axes.set_ylim(len(labels), 0)
        ends = [0.0, *values, *low, *high]
        reach = max(ends) - min(ends) or 1.0
        axes.set_xlim(min(ends) - 0.14 * reach * (min(ends) < 0), max(ends) + 0.14 * reach)
        axes.grid(axis="x", color=FAINT, lw=0.4, zorder=0)
        axes.spines["left"].set_visible(False)
        axes.set_yticks(at, [drawable(clipped(label, _LONGEST_LABEL)) for label in labels], fontsize=7.5)
        axes.tick_params(axis="y", length=0, pad=4)
        digits = 2 if max(np.abs(values), default=1.0) >= 0.1 else 3
        for place_at, value, first, last in zip(at, values, low, high, strict=True):
            beyond = max(value, last, 0.0) if value >= 0 else min(value, first, 0.0)
            axes.annotate(
                number(float(value), digits), (beyond, place_at), (3 if value >= 0 else -3, 0),
                textcoords="offset points", ha="left" if value >= 0 else "right", va="center", fontsize=6.0,
                color=MUTED,
            )  # fmt: skip
        axes.set_xlabel(drawable(f"{quantity}; lines: 95 % intervals"))
        axes.set_title(drawable(title))
    return figure


def head_heatmap(values: Float[np.ndarray, "layer head"], title: str, quantity: str) -> Figure:
    """One cell a head, layer 0 at the top."""
    n_layers, n_heads = values.shape
    grid = LabelledGrid(
        values=values,
        row_labels=tuple(map(str, range(n_layers))),
        col_labels=tuple(map(str, range(n_heads))),
        row_title="layer",
        col_title="head",
        title=title,
        quantity=quantity,
    )
    return heatmap(grid)
