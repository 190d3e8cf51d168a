"""Ablation loss of an MLP against the outlier score of its largest neuron, one dot per position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from circuitlab.viz.save import fit, new_figure, place
from circuitlab.viz.style import FAINT, INK, MUTED, POSITIVE, style
from circuitlab.viz.text import drawable, visible_token

if TYPE_CHECKING:
    import pandas as pd

_SIZE = (4.6, 3.0)
_LINE = 0.155


def outlier_figure(positions: pd.DataFrame, n_top: int = 10, title: str | None = None) -> Figure:
    """A scatter of all positions, the first ones numbered and listed.

    Args:
        positions: Columns prompt, position, token, ablation_loss, outlier_score; the highest combination first.
        n_top: How many of the first are marked.
        title: Above the figure.

    Returns:
        The figure.
    """
    with style():
        figure = new_figure(_SIZE[0] + 4, _SIZE[1] + 2)
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), label="outliers")
        place(figure, axes, 1.0, 1.0, *_SIZE)
        top, rest = positions.iloc[:n_top], positions.iloc[n_top:]
        axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
        axes.scatter(rest["outlier_score"], rest["ablation_loss"], s=9, color=MUTED, alpha=0.55, lw=0)
        axes.scatter(top["outlier_score"], top["ablation_loss"], s=16, color=POSITIVE, lw=0, zorder=3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=2.5, width=0.6, labelsize=7)
        axes.set_xlabel("outlier score: largest neuron minus mean over neurons")
        axes.set_ylabel("ablation loss [nats]")
        if title:
            axes.set_title(drawable(title))
        _list(axes, top)
        fit(figure)
    return figure


def _list(axes: Axes, top: pd.DataFrame) -> None:
    """Numbers at the dots, and beside the axes what they are."""
    height = _SIZE[1]
    axes.text(1.03, 1.0, "highest combination", transform=axes.transAxes, fontsize=7, color=MUTED, va="top")
    for rank, row in enumerate(top.to_dict("records"), start=1):
        at = (row["outlier_score"], row["ablation_loss"])
        axes.annotate(str(rank), at, (3.5, 1.5), textcoords="offset points", fontsize=6, color=INK)
        token = visible_token(str(row["token"]), 16)
        line = f"{rank}.  {token}   prompt {row['prompt']}, position {row['position']}"
        y = 1.0 - (rank + 0.3) * _LINE / height
        axes.text(1.03, y, drawable(line), transform=axes.transAxes, fontsize=7, color=INK, va="top")
