"""Figures of attributions and attention: bars of what parts add to a number, the logit lens, attention patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from circuitlab.viz.grid import LabelledGrid
from circuitlab.viz.heatmap import draw_cells, draw_colour_bar, heatmap, write_in_cells
from circuitlab.viz.save import canvas, fit, new_figure, panel
from circuitlab.viz.style import BAND, FAINT, INK, MUTED, PAPER, POSITIVE, sequential, sign_colour, style
from circuitlab.viz.text import clipped, drawable, number, text_width, visible_token

_BAR, _WIDTH = 0.19, 4.2
_LONGEST_LABEL = 28


def bars(
    labels: Sequence[str],
    values: Float[np.ndarray, " bar"],
    low: Float[np.ndarray, " bar"] | None = None,
    high: Float[np.ndarray, " bar"] | None = None,
    *,
    title: str,
    quantity: str,
    level: int = 95,
    digits: int | None = None,
) -> Figure:
    """Bars from top to bottom in the order given: blue adds, red takes away; the thin lines are intervals.

    Args:
        labels: What each bar is.
        values: How far it reaches.
        low: Lower ends of the intervals; none are drawn where they are left out.
        high: Upper ends.
        title: Over the figure.
        quantity: What the values are, with their unit.
        level: Of the intervals, in per cent.
        digits: Decimal places of the values; by default 2, or 3 where all are below 0.1.

    Returns:
        The figure.
    """
    has_intervals = low is not None and high is not None
    low, high = (low, high) if low is not None and high is not None else (values, values)
    with canvas(_WIDTH, _BAR * len(labels), "bars") as (figure, axes):
        at = np.arange(len(labels)) + 0.5
        axes.barh(at, values, height=0.72, color=[sign_colour(value) for value in values], zorder=2)
        if has_intervals:
            axes.hlines(at, low, high, color=INK, lw=0.9, zorder=3)
        axes.axvline(0.0, color=MUTED, lw=0.6, zorder=1)
        axes.set_ylim(len(labels), 0)
        ends = [0.0, *(end for end in (*values, *low, *high) if np.isfinite(end))]
        reach = max(ends) - min(ends) or 1.0
        axes.set_xlim(min(ends) - 0.14 * reach * (min(ends) < 0), max(ends) + 0.14 * reach)
        axes.grid(axis="x", color=FAINT, lw=0.4, zorder=0)
        axes.spines["left"].set_visible(False)
        axes.set_yticks(at, [drawable(clipped(label, _LONGEST_LABEL)) for label in labels], fontsize=7.5)
        axes.tick_params(axis="y", length=0, pad=4)
        if digits is None:
            digits = 2 if np.nanmax(np.abs(values), initial=0.0) >= 0.1 or not len(values) else 3
        for place_at, value, first, last in zip(at, values, low, high, strict=True):
            beyond = max(value, last, 0.0) if value >= 0 else min(value, first, 0.0)
            axes.annotate(
                number(float(value), digits), (beyond, place_at), (3 if value >= 0 else -3, 0),
                textcoords="offset points", ha="left" if value >= 0 else "right", va="center", fontsize=6.0,
                color=MUTED,
            )  # fmt: skip
        axes.set_xlabel(drawable(f"{quantity}; lines: {level} % intervals" if has_intervals else quantity))
        axes.set_title(drawable(title))
    return figure


def head_heatmap(values: Float[np.ndarray, "layer head"], title: str, quantity: str) -> Figure:
    """One cell a head, layer 0 at the top.

    Returns:
        The figure.
    """
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


_POINT, _LEAST_WIDTH, _HEIGHT = 0.27, 2.4, 2.6
# Single prompts shown with the mean: more would be a grey surface.
_MOST_LINES = 40
_WORD_CELL, _WORD_ROW = (0.5, 0.86), 0.24
# Columns of words: a page wide. Of a longer prompt the end is shown, where the answer is read.
_MOST_TOKENS = 24


def stream_figure(
    labels: Sequence[str],
    per_example: Float[np.ndarray, "point example"],
    low: Float[np.ndarray, " point"],
    high: Float[np.ndarray, " point"],
    *,
    title: str,
    quantity: str,
) -> Figure:
    """A number at every point of the stream: the mean with its interval over thin lines of single prompts.

    Args:
        labels: What was written last before each point.
        per_example: The values.
        low: Lower ends of the means' intervals.
        high: Upper ends.
        title: Over the figure.
        quantity: What the values are, with their unit.

    Returns:
        The figure.
    """
    width = max(_LEAST_WIDTH, _POINT * len(labels))
    at, mean = np.arange(len(labels)), per_example.mean(-1)
    with canvas(width, _HEIGHT, "stream") as (figure, axes):
        axes.axhline(0.0, color=MUTED, lw=0.6, zorder=1)
        axes.plot(at, per_example[:, :_MOST_LINES], color=FAINT, lw=0.5, zorder=1)
        axes.fill_between(at, low, high, color=POSITIVE, alpha=0.22, lw=0, zorder=2)
        axes.plot(at, mean, color=POSITIVE, lw=1.5, zorder=3)
        half = [label.startswith("attention") for label in labels]
        for hollow in (True, False):
            chosen = [i for i in at if half[i] == hollow]
            face = PAPER if hollow else POSITIVE
            axes.plot(chosen, mean[chosen], ls="", marker="o", ms=3.8, mfc=face, mec=POSITIVE, mew=1.0, zorder=4)
        axes.set_xlim(-0.4, len(labels) - 0.6)
        axes.grid(axis="y", color=FAINT, lw=0.4, zorder=0)
        axes.set_xticks(at, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlabel("stream after" + (" (hollow: mid-layer)" if any(half) else ""), color=MUTED)
        axes.set_ylabel(drawable(f"{quantity}\nmean, 95 % interval"))
        axes.set_title(drawable(title))
    return figure


def lens_figure(
    tokens: Sequence[str],
    labels: Sequence[str],
    words: Sequence[Sequence[str]],
    probabilities: Float[np.ndarray, "point seq"],
) -> Figure:
    """The likeliest next token in each cell, points from top to bottom; darker: likelier.

    Args:
        tokens: The prompt; of a long one the last 24 are shown.
        labels: What was written last before each point.
        words: The likeliest token, by point and token of the prompt.
        probabilities: Its probability.

    Returns:
        The figure.
    """
    start = max(0, len(tokens) - _MOST_TOKENS)
    shown = [[drawable(visible_token(word, 10)) for word in row[start:]] for row in words]
    heads = [drawable(visible_token(token, 10)) for token in tokens[start:]]
    widest = max(text_width(text, 6.5) for row in [*shown, heads] for text in row)
    cell, n_rows, n_cols = float(np.clip(widest + 0.1, *_WORD_CELL)), len(labels), len(heads)
    with canvas(n_cols * cell, n_rows * _WORD_ROW, "words") as (figure, axes):
        mesh = draw_cells(axes, probabilities[:, start:], sequential(), Normalize(0.0, 1.0))
        texts = {(row, col): text for row, line in enumerate(shown) for col, text in enumerate(line)}
        write_in_cells(axes, mesh, texts, 6.5)
        axes.set_xticks(np.arange(n_cols) + 0.5, heads, fontsize=6.5)
        axes.xaxis.tick_top()
        axes.set_yticks(np.arange(n_rows) + 0.5, labels)
        axes.set_ylabel("stream after", color=MUTED)
        axes.set_title("Most likely next token" + (f", last {_MOST_TOKENS} tokens" if start else ""), pad=8)
        draw_colour_bar(figure, axes, mesh, "probability", min(1.6, n_rows * _WORD_ROW))
    return figure


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
