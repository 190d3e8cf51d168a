"""Figures of attention patterns: queries on the left, keys below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from circuitlab.viz.cells import draw_cells, draw_colour_bar, write_in_cells
from circuitlab.viz.save import fit, new_figure, panel
from circuitlab.viz.style import BAND, FAINT, MUTED, sequential, style
from circuitlab.viz.text import drawable, number, text_width, visible_token

# Inches. At 0.12 inch a cell, labels of 5.5 points do not overlap: a hundred tokens are a foot wide.
_PANEL, _CELL = 2.5, (0.12, 0.3)
_GAP, _TITLE = 0.28, 0.42
_PAGE = 11.0
_LONGEST_TOKEN = 14


def attention_figure(
    tokens: Sequence[str],
    heads: Sequence[str],
    patterns: Float[np.ndarray, "head query key"],
    *,
    title: str = "",
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Patterns of several heads, as many side by side as a page is wide; darker: more attention, on one scale.

    Args:
        tokens: The prompt.
        heads: Names of the heads.
        patterns: Their weights; above the diagonal, which is zero in causal models, the figure is empty.
        title: Over the figure.
        notes: Head -> a short note, shown after its name.

    Returns:
        The figure.
    """
    n = len(tokens)
    size = _label_size(n)
    cell = float(np.clip(_PANEL / n, *_CELL))
    side = n * cell
    labels = [drawable(visible_token(token, _LONGEST_TOKEN)) for token in tokens]
    label_width = max(text_width(label, size) for label in labels) + 0.1
    columns = max(1, min(len(heads), int((_PAGE - label_width + _GAP) // (side + _GAP))))
    rows = -(-len(heads) // columns)
    columns = -(-len(heads) // rows)  # six heads are placed three by three where four would fit
    step = side + _TITLE
    with style():
        figure = new_figure(columns * (side + _GAP) + label_width + 3.0, rows * step + label_width + 3.0)
        meshes: list[QuadMesh] = []
        for i, (head, pattern) in enumerate(zip(heads, patterns, strict=True)):
            row, column = divmod(i, columns)
            left, bottom = 1.5 + label_width + column * (side + _GAP), 1.5 + label_width + (rows - 1 - row) * step
            axes = panel(figure, head, left, bottom, side, side)
            meshes.append(_draw(axes, pattern, cell))
            lowest = i + columns >= len(heads)
            _name_tokens(axes, labels, size, left=column == 0, below=lowest)
            axes.set_title(drawable(f"{head}  {(notes or {}).get(head, '')}".rstrip()), fontsize=8, pad=4)
            if column == 0:
                axes.set_ylabel("query", color=MUTED, fontsize=7)
            if lowest:
                axes.set_xlabel("key", color=MUTED, fontsize=7)
        draw_colour_bar(figure, figure.axes[columns - 1], meshes[0], "attention", min(1.6, side))
        if title:
            _draw_title(figure.axes[0], title)
        fit(figure)
    return figure


def _label_size(n_tokens: int) -> float:
    return 7.0 if n_tokens <= 14 else 6.0 if n_tokens <= 18 else 5.5


def _draw(axes: Axes, pattern: Float[np.ndarray, "query key"], cell: float) -> QuadMesh:
    causal = not np.triu(np.abs(pattern), 1).any()
    shown = np.ma.masked_array(pattern, mask=np.triu(np.ones_like(pattern, dtype=bool), 1) if causal else False)
    axes.set_facecolor(BAND)
    mesh = draw_cells(axes, shown, sequential(), Normalize(0.0, 1.0), edge=FAINT, line=0.25)
    if cell >= 0.22:
        large = np.argwhere(pattern >= 0.095).tolist()  # written as 0.1 or more
        words = {(row, col): number(float(pattern[row, col]), 1).lstrip("0") or "0" for row, col in large}
        write_in_cells(axes, mesh, words, 5.5)
    return mesh


def _name_tokens(axes: Axes, labels: Sequence[str], size: float, *, left: bool, below: bool) -> None:
    """Tokens on both axes; panels inside the grid share those of their neighbours."""
    at = np.arange(len(labels)) + 0.5
    axes.set_yticks(at if left else [], labels if left else [], fontsize=size)
    axes.set_xticks(at if below else [], labels if below else [], fontsize=size, rotation=90)
    axes.tick_params(pad=2)


def _draw_title(first: Axes, title: str) -> None:
    """Over the first panel, whose own title is its head's name."""
    first.annotate(
        drawable(visible_token(title, 90)), (0, 1), (0, 24), xycoords="axes fraction", textcoords="offset points",
        fontsize=9, fontweight="bold", va="bottom", annotation_clip=False,
    )  # fmt: skip
