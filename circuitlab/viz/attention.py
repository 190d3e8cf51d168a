"""Figures of attention patterns: queries on the left, keys below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from circuitlab.viz.save import fit, new_figure, place
from circuitlab.viz.style import BAND, FAINT, INK, MUTED, sequential, style, text_on
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
        mesh: QuadMesh | None = None
        for place_of, (head, pattern) in enumerate(zip(heads, patterns, strict=True)):
            row, column = divmod(place_of, columns)
            axes = figure.add_axes((0.1, 0.1, 0.1, 0.1), label=head)
            left, bottom = 1.5 + label_width + column * (side + _GAP), 1.5 + label_width + (rows - 1 - row) * step
            place(figure, axes, left, bottom, side, side)
            mesh = _draw(axes, pattern, cell)
            under = place_of + columns >= len(heads)
            _name_tokens(axes, labels, size, left=column == 0, below=under)
            note = (notes or {}).get(head, "")
            axes.set_title(drawable(f"{head}  {note}".rstrip()), fontsize=8, pad=4, color=INK)
            if column == 0:
                axes.set_ylabel("query", color=MUTED, fontsize=7)
            if under:
                axes.set_xlabel("key", color=MUTED, fontsize=7)
        assert mesh is not None, "there is at least one head"
        bar = figure.add_axes((0.8, 0.1, 0.1, 0.5), label="colour bar")
        top = 1.5 + label_width + (rows - 1) * step + side
        height = min(1.6, side)
        place(figure, bar, 1.5 + label_width + columns * (side + _GAP) - 0.1, top - height, 0.12, height)
        colours = figure.colorbar(mesh, cax=bar)
        colours.outline.set_visible(False)
        bar.set_ylabel("attention", fontsize=7)
        bar.tick_params(length=2, width=0.6, pad=2, labelsize=6.5)
        if title:
            _draw_title(figure.axes[0], title)
        fit(figure)
    return figure


def _label_size(n_tokens: int) -> float:
    return 7.0 if n_tokens <= 14 else 6.0 if n_tokens <= 18 else 5.5


def _draw(axes: Axes, pattern: Float[np.ndarray, "query key"], cell: float) -> QuadMesh:
    n = len(pattern)
    causal = not np.triu(np.abs(pattern), 1).any()
    shown = np.ma.masked_array(pattern, mask=np.triu(np.ones_like(pattern, dtype=bool), 1) if causal else False)
    axes.set_facecolor(BAND)
    mesh = axes.pcolormesh(
        np.arange(n + 1), np.arange(n + 1), shown, cmap=sequential(), norm=Normalize(0.0, 1.0), edgecolors=FAINT,
        linewidth=0.25,
    )  # fmt: skip
    axes.set_xlim(0, n)
    axes.set_ylim(n, 0)
    axes.spines[:].set_visible(False)
    if cell >= 0.22:
        for (row, col), weight in np.ndenumerate(pattern):
            if weight >= 0.095:  # what is written as 0.1 or more
                red, green, blue, _ = mesh.to_rgba(weight)
                axes.text(
                    col + 0.5, row + 0.5, number(float(weight), 1).lstrip("0") or "0", ha="center",
                    va="center_baseline", fontsize=5.5, color=text_on((red, green, blue)),
                )  # fmt: skip
    return mesh


def _name_tokens(axes: Axes, labels: Sequence[str], size: float, *, left: bool, below: bool) -> None:
    """Tokens on both axes; panels inside the grid share those of their neighbours."""
    at = np.arange(len(labels)) + 0.5
    axes.set_yticks(at if left else [], labels if left else [], fontsize=size)
    axes.set_xticks(at if below else [], labels if below else [], fontsize=size, rotation=90)
    axes.tick_params(length=0, pad=2)


def _draw_title(first: Axes, title: str) -> None:
    """Over the first panel, whose own title is its head's name."""
    first.annotate(
        drawable(visible_token(title, 90)), (0, 1), (0, 24), xycoords="axes fraction", textcoords="offset points",
        fontsize=9, fontweight="bold", color=INK, va="bottom", annotation_clip=False,
    )  # fmt: skip
